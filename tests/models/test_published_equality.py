"""CARZero.similarity equals the published computation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from published_model import (
    perturbed,
    published_decoder,
    published_encode_images,
    published_encode_texts,
    published_similarity,
)

from carzero import CARZero, CARZeroConfig


@pytest.mark.parametrize("mode", ["default", "published"])
def test_similarity_float64(model, pixels, texts, mode):
    model = model.double()
    model.text_encoder.mode = mode
    want = published_similarity(model, pixels.double(), texts)
    got = model.similarity(pixels.double(), texts)
    assert want.std() > 1e-2, "scores that hardly differ would prove nothing"
    # float64 rounding, about 1e3 operations deep
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_similarity_float32(model, pixels, texts):
    truth = published_similarity(model.double(), pixels.double(), texts)
    model = model.float()
    theirs = published_similarity(model, pixels, texts)
    got = model.similarity(pixels, texts)
    # the published module in float32 is off by its own rounding; ours may be off by as much, and a floor of 2^-20
    floor = 2**-20 * truth.abs().max()
    assert (got - truth).abs().max() <= 2 * (theirs - truth).abs().max() + floor


def test_encoders_float64(model, pixels, texts):
    model = model.double()
    images, encoded = model.encode_images(pixels.double()), model.encode_texts(texts)
    query, local = published_encode_images(model, pixels.double())
    torch.testing.assert_close(images.query, query, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(images.memory, torch.cat((query.unsqueeze(1), local), 1), rtol=1e-12, atol=1e-12)
    assert images.row_count is None
    sentence, words = published_encode_texts(model, texts)
    torch.testing.assert_close(encoded.query, sentence, rtol=1e-12, atol=1e-12)
    # expand the collapsed rows: row p with count n stands for rows p .. p+n-1
    for i in range(len(texts)):
        rows = encoded.memory[i].repeat_interleave(encoded.row_count[i].long(), 0)
        want = torch.cat((sentence[i : i + 1], words[i]))
        assert rows.shape == want.shape
        torch.testing.assert_close(rows, want, rtol=1e-12, atol=1e-12)


def test_collapsed_text_memory_equals_all_rows(model, pixels, texts):
    model = model.double()
    images, encoded = model.encode_images(pixels.double()), model.encode_texts(texts)
    sentence, words = published_encode_texts(model, texts)
    full = torch.cat((sentence.unsqueeze(1), words), 1)
    assert encoded.memory.shape[1] < full.shape[1]
    with torch.no_grad():
        got = model.decoder(encoded.memory, images.query, row_count=encoded.row_count)
        want = model.decoder(full, images.query)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", ["local", "global"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_memory_rows_and_heads(tokenizer, pixels, texts, rows, head):
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), max_tokens=64, memory_rows=rows, head=head)
    torch.manual_seed(0)
    model = perturbed(CARZero(config, tokenizer)).double().eval()
    decoder = published_decoder(model.decoder)
    query, local = published_encode_images(model, pixels.double())
    sentence, words = published_encode_texts(model, texts)
    images, memories = (local, words) if rows == "local" else (query.unsqueeze(1), sentence.unsqueeze(1))
    with torch.no_grad():
        want = (decoder(images, sentence)[0] + decoder(memories, query)[0].T) / 2
    torch.testing.assert_close(model.similarity(pixels.double(), texts), want, rtol=1e-10, atol=1e-10)


def test_logits_and_gradients_float64(model, pixels, texts):
    """Both logit matrices, and the gradient of every weight, without dropout."""
    model = model.double()
    x = pixels.double()
    image_memory, text_memory = model.logits(x, texts)
    weight = torch.randn(len(x), len(texts), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = (image_memory * weight).sum() + (text_memory * weight.flip(0)).sum()
    got = dict(zip(names, torch.autograd.grad(loss, parameters)))

    decoder = published_decoder(model.decoder)
    query, local = published_encode_images(model, x)
    sentence, words = published_encode_texts(model, texts)
    i = decoder(torch.cat((query.unsqueeze(1), local), 1), sentence)[0]
    t = decoder(torch.cat((sentence.unsqueeze(1), words), 1), query)[0].T
    torch.testing.assert_close(image_memory, i, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(text_memory, t, rtol=1e-10, atol=1e-10)
    encoders = [name for name in names if not name.startswith("decoder.")]
    loss = (i * weight).sum() + (t * weight.flip(0)).sum()
    want = torch.autograd.grad(loss, [model.get_parameter(name) for name in encoders])
    # some gradients vanish in exact arithmetic (key biases), so the largest of all sets the scale of rounding
    scale = max(float(gradient.abs().max()) for gradient in want)
    for name, gradient in zip(encoders, want):
        torch.testing.assert_close(got[name], gradient, rtol=1e-8, atol=1e-12 * scale, msg=name)


def test_published_text_mode_is_part_of_the_model(model, pixels, tokenizer):
    config = dataclasses.replace(model.config, text_mode="published")
    published = CARZero(config, tokenizer).eval()
    published.load_state_dict(model.state_dict())
    prompts = ["There is cardiomegaly", "cardiomegaly"]
    ours, theirs = model.similarity(pixels, prompts), published.similarity(pixels, prompts)
    torch.testing.assert_close(ours[:, 0], theirs[:, 0], rtol=0, atol=1e-5)
    # a single word is an empty text there, the word here
    torch.testing.assert_close(theirs[:, 1], published.similarity(pixels, [""])[:, 0], rtol=0, atol=1e-5)
    assert (ours[:, 1] - theirs[:, 1]).abs().max() > 1e-3
