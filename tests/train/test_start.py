"""What a run starts from: image weights in every layout, text weights, and what is said where they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.image_encoder import ImageEncoder
from carzero.models.tokenizer import word_tokenizer
from carzero.train.config import Init, TrainConfig
from carzero.train.start import build_model, build_optimizer

TEXTS = ["There is no effusion", "A mass"]


@pytest.fixture
def small(tmp_path: Path) -> TrainConfig:
    model = CARZeroConfig.tiny(width=32, depth=2, heads=2, layers=1, image_size=32)
    (tmp_path / "model.json").write_text(model.to_json(), encoding="utf-8")
    return TrainConfig("m.csv", "o", model=str(tmp_path / "model.json"), device="cpu")


def encoder_of(config: TrainConfig, image_size: int = 32) -> ImageEncoder:
    torch.manual_seed(99)
    chosen = CARZeroConfig.from_json(Path(config.model).read_text()).image
    encoder = ImageEncoder(dataclasses.replace(chosen, image_size=image_size))
    with torch.no_grad():
        encoder.model.pos_embed.normal_()
    return encoder


def begun(config: TrainConfig, path: Path) -> tuple[CARZero, str]:
    return build_model(dataclasses.replace(config, init=Init(image=str(path))), TEXTS)


@pytest.mark.parametrize("layout", ["M3AE", "MRM", "timm", "CARZero", "folder"])
def test_image_weights_in_every_layout(small: TrainConfig, tmp_path: Path, layout: str) -> None:
    encoder = encoder_of(small)
    tensors = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    path = tmp_path / "image.ckpt"
    if layout == "M3AE":
        others = {"language_encoder.x": torch.zeros(2), "vision_encoder.decoder_blocks.0.norm1.weight": torch.zeros(2)}
        named = {f"vision_encoder.{k}": v for k, v in tensors.items()} | others
        torch.save({"epoch": 3, "state_dict": named}, path)
    elif layout == "MRM":
        torch.save({"model": tensors | {"mask_token": torch.zeros(1, 1, 8), "head.weight": torch.zeros(2, 2)}}, path)
    elif layout == "timm":
        torch.save(tensors, path)
    elif layout == "CARZero":
        torch.save({"state_dict": {f"CARZero.img_encoder.model.{k}": v for k, v in tensors.items()}}, path)
    else:
        path = tmp_path / "timm"
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    model, source = begun(small, path)
    for key, value in model.image_encoder.model.state_dict().items():
        assert torch.equal(value, tensors[key]), key
    left = {"M3AE": ", 1 others left out", "MRM": ", 2 others left out"}.get(layout, "")
    assert f"image encoder of {path} ({len(tensors)} tensors{left}); other weights random" in source
    # the rest is drawn as it is without
    plain, _ = build_model(small, TEXTS)
    assert torch.equal(plain.decoder.head[0].weight, model.decoder.head[0].weight)


def test_positions_for_another_size_are_resampled(small: TrainConfig, tmp_path: Path) -> None:
    larger = encoder_of(small, image_size=64)
    torch.save(larger.model.state_dict(), tmp_path / "image.pth")
    model, _ = begun(small, tmp_path / "image.pth")
    larger.set_image_size(32)
    torch.testing.assert_close(model.image_encoder.model.pos_embed, larger.model.pos_embed)


def test_image_weights_that_do_not_fit_get_a_sentence(small: TrainConfig, tmp_path: Path) -> None:
    tensors = dict(encoder_of(small).model.state_dict())
    path = tmp_path / "image.pth"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(
        UserError, match=r"holds no Vision Transformer: no key patch_embed.proj.weight.*first keys are x"
    ):
        begun(small, path)
    torch.save({k: v for k, v in tensors.items() if k != "blocks.1.norm1.weight"}, path)
    with pytest.raises(UserError, match=r"lacks 1 tensors of the image encoder .*blocks.1.norm1.weight"):
        begun(small, path)
    torch.save({**tensors, "norm.weight": torch.zeros(64)}, path)
    with pytest.raises(UserError, match=r"norm.weight of init.image .* must have shape \(32,\) .*got \(64,\)"):
        begun(small, path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        begun(small, tmp_path / "empty")
    with pytest.raises(
        UserError, match=r"neither a file or folder here nor a timm model; near it are vit_small_patch16"
    ):
        build_model(dataclasses.replace(small, init=Init(image="vit_small_patch16_225")), TEXTS)


def test_text_weights_bring_their_tokenizer_and_sizes(small: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tokenizer = word_tokenizer(["quite another vocabulary"])
    other = CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer), width=32, depth=2, heads=2, layers=1), tokenizer)
    folder = tmp_path / "bert"
    other.text_encoder.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, source = build_model(dataclasses.replace(small, init=Init(text=str(folder))), TEXTS)
    assert model.config.text.vocab_size == len(tokenizer)
    for (name, a), b in zip(other.text_encoder.state_dict().items(), model.text_encoder.state_dict().values()):
        assert torch.equal(a, b), name
    assert f"text encoder of {folder}; other weights random" in source
    wide = CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer), width=64, depth=2, layers=1), tokenizer)
    wide.text_encoder.model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    with pytest.raises(
        UserError, match=r"must have the same width, got image.width=32, text.width=64, decoder.width=32"
    ):
        build_model(dataclasses.replace(small, init=Init(text=str(tmp_path / "wide"))), TEXTS)


def test_optimizers_decay_what_they_say(small: TrainConfig) -> None:
    model, _ = build_model(small, TEXTS)
    adamw = build_optimizer(model, dataclasses.replace(small, weight_decay=0.1))
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.1, 0.0]
    assert {p.ndim for p in adamw.param_groups[1]["params"]} == {1}
    adam = build_optimizer(model, dataclasses.replace(small, optimizer="adam", weight_decay=0.1))
    assert (type(adam), len(adam.param_groups)) == (torch.optim.Adam, 1)
    assert adam.defaults["decoupled_weight_decay"] is False
