"""Configurations: JSON round trip, strict keys, presets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from carzero.errors import UserError
from carzero.models.config import CARZeroConfig, DecoderConfig, ImageEncoderConfig, TextEncoderConfig


@pytest.mark.parametrize(
    "config",
    [
        CARZeroConfig.carzero(),
        CARZeroConfig.carzero(image_size=384, vocab_size=28996),
        CARZeroConfig.tiny(head="linear", memory_rows="local", text_mode="published"),
        CARZeroConfig(text=TextEncoderConfig(extra={"hidden_act": "relu"})),
    ],
)
def test_json_round_trip(config):
    assert CARZeroConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["decoder"]["head_hidden"] == list(config.decoder.head_hidden)


def test_published_preset_is_the_published_model():
    config = CARZeroConfig.carzero()
    assert (config.image.name, config.image.image_size) == ("vit_base_patch16_224", 224)
    assert (config.text.max_tokens, config.text.last_layers, config.text.width) == (97, 4, 768)
    spec = config.decoder.spec
    assert (spec.layers, spec.heads, spec.ffn, spec.head_hidden, spec.eps) == (4, 4, 1024, (1024, 512, 256), 1e-5)
    assert (config.decoder.dropout, config.decoder.memory_rows) == (0.1, "global+local")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("imge", r"unknown key 'imge'; the nearest known is 'image'"),
        ("decoder.layer", r"unknown key decoder\.'layer'; the nearest known is 'layers'"),
        ("text.max_token", r"unknown key text\.'max_token'; the nearest known is 'max_tokens'"),
    ],
)
def test_unknown_keys_name_the_nearest(path, message):
    values = CARZeroConfig().to_dict()
    *parents, key = path.split(".")
    target = values
    for parent in parents:
        target = target[parent]
    target[key] = 3
    with pytest.raises(UserError, match=message):
        CARZeroConfig.from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CARZeroConfig.from_json("{"), "not valid JSON"),
        (lambda: CARZeroConfig.from_json("[]"), "must be an object"),
        (lambda: CARZeroConfig.from_dict({"decoder": {"heads": 5}}), "heads must divide width"),
        (lambda: CARZeroConfig.from_dict({"image": 3}), "image must be an object, got 3"),
        (lambda: CARZeroConfig(text_mode="publshed"), "nearest known is 'published'"),
        (lambda: CARZeroConfig(decoder=DecoderConfig(width=512)), r"same width, got text.width=768, decoder.width=512"),
        (lambda: ImageEncoderConfig(image_size=230, patch=16), "multiple of patch, got image_size=230 and patch=16"),
        (lambda: TextEncoderConfig(max_tokens=600), "max_tokens=600 and max_positions=512"),
        (lambda: TextEncoderConfig(depth=2, last_layers=4), "last_layers=4 and depth=2"),
        (lambda: TextEncoderConfig(width=0), "width must be a positive int, got 0"),
        (lambda: DecoderConfig(dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (lambda: DecoderConfig(memory_rows="globl"), "nearest known is 'global'"),
    ],
)
def test_bad_values_are_sentences(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARZeroConfig().text_mode = "published"  # type: ignore[misc]
