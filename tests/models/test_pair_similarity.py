"""CARZero with another similarity in the decoder's place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from carzero import CARZero, CARZeroConfig
from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.models.config import DecoderConfig
from carzero.similarities import word_region
from carzero.train.ranks import Ranks
from carzero.train.step import StepInputs, accumulate_gradients
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.explain import explain_prompts

OTHERS = ("gloria", "max_sim", "vl_cabs", "cosine")


def model_of(name: str, tokenizer, **fields) -> CARZero:
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), width=32, heads=2, max_tokens=64, dropout=0.0)
    return CARZero(dataclasses.replace(config, similarity=name, **fields), tokenizer).double().eval()


def rows(model: CARZero, pixels, texts) -> tuple[list, list]:
    """Projected rows of each image and each text alone: the global one and the local ones that are there."""
    images, encoded = model.encode_images(pixels), model.encode_texts(texts)
    head = model.decoder
    image = [head.image_projection(head.norm(memory)) for memory in images.memory]
    text = [
        head.text_projection(head.norm(memory[count > 0]))
        for memory, count in zip(encoded.memory, encoded.row_count, strict=True)
    ]
    return image, text


def attended_cosine(memory, query, temperature):
    memory, query = F.normalize(memory, dim=-1), F.normalize(query, dim=-1)
    return F.cosine_similarity(torch.softmax(memory @ query / temperature, 0) @ memory, query, dim=0)


def best_mean(memory, query):
    return (F.normalize(query, dim=-1) @ F.normalize(memory, dim=-1).T).amax(1).mean()


def equations(name: str, model: CARZero, image, text) -> tuple:
    """Both logits of one image and one text."""
    scale = float(model.decoder.scale)
    same = F.cosine_similarity(image[0], text[0], dim=0)
    if name == "cosine":
        found = same, same
    elif name == "vl_cabs":
        found = attended_cosine(image, text[0], 1 / scale), attended_cosine(text, image[0], 1 / scale)
    elif name == "max_sim":
        found = best_mean(image[1:], text[1:]), best_mean(text[1:], image[1:])
    else:
        words = text[None, 1:] / 32**0.5
        found = word_region(image[None, 1:], words, backend="reference")[0, 0], same
    return tuple(scale * f for f in found)


@pytest.mark.parametrize("name", OTHERS)
def test_logits_are_the_equations(name, tokenizer, pixels, texts) -> None:
    model = model_of(name, tokenizer)
    with torch.no_grad():
        images, words = rows(model, pixels.double(), texts)
        expected = torch.tensor([[equations(name, model, i, t) for t in words] for i in images])
        logits = model.logits(pixels.double(), texts)
        for which in (0, 1):
            torch.testing.assert_close(logits[which], expected[..., which], rtol=1e-10, atol=1e-10)
        mean = expected.mean(-1)
        # chunks of texts of other lengths, a bank, images in parts
        bank = model.text_bank(texts, batch_size=2)
        torch.testing.assert_close(model.similarity(pixels.double(), bank, batch_size=2), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name, tokenizer, pixels, texts) -> None:
    model = model_of(name, tokenizer).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients(micro_batch):
        inputs = StepInputs(pixels.double(), texts[:3], 1, 3, None, seed=5)
        loss = accumulate_gradients(
            model, inputs, Ranks(), micro_batch=micro_batch, dtype=torch.float32, backend="auto"
        )  # fmt: skip
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return {"loss": loss, **found}

    whole, parts = gradients(None), gradients(1)
    assert any(g.any() for n, g in whole.items() if n.startswith("decoder."))
    assert "decoder.log_scale" in whole
    total = torch.sqrt(sum(g.square().sum() for g in whole.values()))
    assert parts.keys() == whole.keys()
    for key, want in whole.items():
        assert float((parts[key] - want).norm()) <= 1e-12 * float(total), key


@pytest.mark.parametrize("name", OTHERS)
def test_saved_and_opened_again(name, tokenizer, pixels, texts, tmp_path) -> None:
    model = model_of(name, tokenizer)
    assert CARZeroConfig.from_json(model.config.to_json()) == model.config
    model.save_pretrained(tmp_path)
    again = CARZero.from_pretrained(tmp_path)
    assert again.config.similarity == name
    torch.testing.assert_close(
        again.double().similarity(pixels.double(), texts), model.similarity(pixels.double(), texts)
    )


@pytest.mark.parametrize("name", ["gloria", "max_sim", "vl_cabs"])
def test_a_folder_is_classified(name, tokenizer, tmp_path, monkeypatch) -> None:
    model = model_of(name, tokenizer).float()
    for number in range(3):
        grey = np.random.default_rng(number).integers(0, 256, (70, 64 + number), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    prompts = {"effusion": "There is pleural effusion", "lobe": "in the right upper lobe of the lung"}
    classifier = ZeroShotClassifier(model, prompts, workers=0, dtype=torch.float32, batch_size=2)
    table = classifier.predict(tmp_path)
    processor = ImageProcessor(size=64)
    pixels = torch.stack([processor(tmp_path / f"{n}.png") for n in range(3)])
    expected = model.similarity(pixels, list(prompts.values()))
    # some 25 roundings of float32
    np.testing.assert_allclose(
        table[list(prompts)].to_numpy(), expected.numpy(), rtol=0, atol=3e-6 * expected.abs().max()
    )
    assert classifier.choices.backend[0] == "torch"
    monkeypatch.setenv("CARZERO_BACKEND", "cpp")
    with pytest.raises(UserError, match=r"=cpp was asked for and cannot run \w+: runs the decoder alone"):
        ZeroShotClassifier(model, prompts, workers=0)


def test_what_does_not_go_together_is_an_error(tokenizer) -> None:
    with pytest.raises(UserError, match=r"similarity 'maxsim' is unknown; the nearest known is 'max_sim'"):
        model_of("maxsim", tokenizer)
    local = DecoderConfig(width=32, heads=2, memory_rows="local")
    with pytest.raises(UserError, match=r"decoder\.memory_rows must be 'global\+local', got 'local'"):
        model_of("cosine", tokenizer, decoder=local)
    with pytest.raises(UserError, match=r"decoder\.self_attention, outputs and memory_width must be left alone"):
        model_of("decoder", tokenizer, decoder=DecoderConfig(width=32, heads=2, outputs=2))
    with pytest.raises(UserError, match="maps are the decoder's attention, and this model has similarity='cosine'"):
        explain_prompts(model_of("cosine", tokenizer), "no.png", ["effusion"])
