"""The public names. A name is added here with its release; one that goes warns for two minor versions first."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "carzero": {
        "__version__", "CARZero", "CARZeroConfig", "DecoderSpec", "DecoderWeights", "ImageProcessor", "SimRDecoder",
        "ZeroShotClassifier", "load", "patch",
    },
    "carzero.ops": {
        "BACKENDS", "DecoderSpec", "DecoderWeights", "PackCache", "PackedWeights", "ProjectedMemory", "available",
        "choose", "choose_recompute", "pack_weights", "pair_attention", "pair_attention_heads", "pair_logits",
        "pair_simr", "project_memory",
    },
    "carzero.similarities": {"choose", "cosine", "max_sim", "vl_cabs", "word_region"},
    "carzero.dropin": {"Patch", "decoder_weights", "pair_logits", "patch", "unpatch"},
}  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these_and_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert len(loaded.__all__) == len(set(loaded.__all__))
    assert set(loaded.__all__) == PUBLIC[module]
    values = {name: getattr(loaded, name) for name in PUBLIC[module]}
    undocumented = [name for name, value in values.items() if callable(value) and not (value.__doc__ or "").strip()]
    assert undocumented == []


def test_a_name_reached_through_two_modules_is_one_object() -> None:
    carzero, ops, dropin = (importlib.import_module(name) for name in ("carzero", "carzero.ops", "carzero.dropin"))
    assert carzero.DecoderSpec is ops.DecoderSpec
    assert carzero.DecoderWeights is ops.DecoderWeights
    assert carzero.patch is dropin.patch
    assert dropin.pair_logits is ops.pair_logits
