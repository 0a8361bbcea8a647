"""The published checkpoint's key names, mapped strictly onto ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from carzero.errors import UserError
from carzero.ops.spec import LAYER_PARAMETERS, DecoderSpec, asdict, parameter_names, spec_from_shapes

from .config import CARZeroConfig, DecoderConfig, ImageEncoderConfig, TextEncoderConfig

#: Keys under the decoder's prefix that no output depends on.
_DEAD_DECODER = re.compile(r"logit_scale|decoder\.layers\.\d+\.(self_attn|norm1)\..+")
#: Keys of the text encoder that no output depends on: the pooler, and an index table that newer libraries rebuild.
_DEAD_TEXT = re.compile(r"embeddings\.(position_ids|token_type_ids)|pooler\..+")
_ANCHOR = "decoder.layers.0.multihead_attn.in_proj_weight"
_LAYER_KEYS = {
    "in_proj_weight": "multihead_attn.in_proj_weight",
    "in_proj_bias": "multihead_attn.in_proj_bias",
    "out_proj_weight": "multihead_attn.out_proj.weight",
    "out_proj_bias": "multihead_attn.out_proj.bias",
    "linear1_weight": "linear1.weight",
    "linear1_bias": "linear1.bias",
    "linear2_weight": "linear2.weight",
    "linear2_bias": "linear2.bias",
    "norm2_weight": "norm2.weight",
    "norm2_bias": "norm2.bias",
    "norm3_weight": "norm3.weight",
    "norm3_bias": "norm3.bias",
}


@dataclass(frozen=True)
class UpstreamDecoder:
    """A published decoder under our names: its spec, its tensors, and the keys that were dropped as dead."""

    spec: DecoderSpec
    tensors: dict[str, Tensor]
    dead: tuple[str, ...]


def decoder_tensors(state_dict: Mapping[str, Tensor], heads: int) -> UpstreamDecoder:
    """Map a published decoder; see `SimRDecoder.from_upstream`."""
    prefix = _prefix(state_dict, _ANCHOR, "SimRDecoder.from_upstream")
    keys = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    dead = [key for key in keys if _DEAD_DECODER.fullmatch(key)]
    layers = 1 + max(int(m[1]) for m in (re.match(r"decoder\.layers\.(\d+)\.", key) for key in keys) if m)
    head = sorted({int(m[1]) for m in (re.fullmatch(r"mlp_head\.(\d+)\.weight", key) for key in keys) if m})
    wanted = {"norm.weight": "decoder.norm.weight", "norm.bias": "decoder.norm.bias"}
    for layer in range(layers):
        for name in LAYER_PARAMETERS:
            wanted[f"layers.{layer}.{name}"] = f"decoder.layers.{layer}.{_LAYER_KEYS[name]}"
    for index, place in enumerate(head):
        for kind in ("weight", "bias"):
            wanted[f"head.{index}.{kind}"] = f"mlp_head.{place}.{kind}"
    twins = {"decoder_norm.weight": "decoder.norm.weight", "decoder_norm.bias": "decoder.norm.bias"}
    for twin, name in twins.items():
        if twin in keys and name in keys and not torch.equal(keys[twin], keys[name]):
            raise UserError(
                f"SimRDecoder.from_upstream: {prefix}{twin} and {prefix}{name} are one LayerNorm under two names, but "
                "they hold different values; this is not a published CARZero checkpoint."
            )
        if twin in keys:
            keys.setdefault(name, keys[twin])
    _check_keys(keys, wanted.values(), [*dead, *twins], prefix, "SimRDecoder.from_upstream")
    if len(head) not in (1, 4):
        raise UserError(
            f"SimRDecoder.from_upstream: the head must be one linear map or four, got mlp_head entries {head}."
        )
    tensors = {ours: keys[theirs] for ours, theirs in wanted.items()}
    spec = spec_from_shapes([tuple(t.shape) for t in tensors.values()], heads, eps=1e-5)
    for name, shape in zip(parameter_names(spec), spec.parameter_shapes()):
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"SimRDecoder.from_upstream: {prefix}{wanted[name]} must have shape {shape}, got "
                f"{tuple(tensors[name].shape)}."
            )
    return UpstreamDecoder(spec, tensors, tuple(prefix + key for key in dead))


@dataclass(frozen=True)
class UpstreamModel:
    """A published checkpoint under our names, with the configuration read off its shapes.

    `dead` are the keys that were dropped because no output depends on them, `dead_values` how many numbers they held.
    """

    config: CARZeroConfig
    tensors: dict[str, Tensor]
    dead: tuple[str, ...]
    dead_values: int

    def dropped(self) -> str:
        """What was dropped, in words."""
        return f"{len(self.dead)} dead keys ({self.dead_values:,} values) that no output depends on."


def model_tensors(state_dict: Mapping[str, Tensor], *, heads: int = 4) -> UpstreamModel:
    """Map a whole published checkpoint: ``img_encoder``, ``text_encoder`` and ``fusion_module``.

    Raises:
        UserError: a key is missing or unknown.
    """
    prefix = _prefix(state_dict, f"fusion_module.{_ANCHOR}", "carzero.load")
    parts: dict[str, dict[str, Tensor]] = {"img_encoder.model.": {}, "text_encoder.model.": {}, "fusion_module.": {}}
    for key, value in state_dict.items():
        name = key.removeprefix(prefix)
        part = next((part for part in parts if name.startswith(part)), None)
        if part is None or not key.startswith(prefix):
            raise UserError(
                f"carzero.load: unknown key {key!r} in the checkpoint; a published one holds only "
                f"{', '.join(f'{prefix}{part}*' for part in parts)}."
            )
        parts[part][name[len(part) :]] = value
    image, text, fusion = parts.values()
    decoder = decoder_tensors(fusion, heads)
    dead_text = [key for key in text if _DEAD_TEXT.fullmatch(key)]
    config = CARZeroConfig(_image_config(image), _text_config(text), DecoderConfig(**asdict(decoder.spec)))
    tensors = {f"image_encoder.model.{key}": value for key, value in image.items()}
    tensors |= {f"text_encoder.model.{key}": value for key, value in text.items() if key not in dead_text}
    tensors |= {f"decoder.{key}": value for key, value in decoder.tensors.items()}
    dead = [f"{prefix}fusion_module.{key}" for key in decoder.dead]
    dead += [f"{prefix}text_encoder.model.{key}" for key in dead_text]
    return UpstreamModel(config, tensors, tuple(dead), sum(state_dict[key].numel() for key in dead))


def _image_config(keys: Mapping[str, Tensor]) -> ImageEncoderConfig:
    _check_present(keys, ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"), "img_encoder.model.")
    width, channels, patch, _ = keys["patch_embed.proj.weight"].shape
    return ImageEncoderConfig(
        image_size=patch * round((keys["pos_embed"].shape[1] - 1) ** 0.5),
        width=width,
        depth=_count(keys, r"blocks\.(\d+)\."),
        heads=max(1, width // 64),
        patch=patch,
        mlp_ratio=keys["blocks.0.mlp.fc1.weight"].shape[0] / width,
        in_chans=channels,
    )


def _text_config(keys: Mapping[str, Tensor]) -> TextEncoderConfig:
    tables = [f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    _check_present(keys, (*tables, "encoder.layer.0.intermediate.dense.weight"), "text_encoder.model.")
    (vocab, width), (positions, _), (types, _) = (keys[table].shape for table in tables)
    return TextEncoderConfig(
        vocab_size=vocab,
        width=width,
        depth=_count(keys, r"encoder\.layer\.(\d+)\."),
        heads=max(1, width // 64),
        ffn=keys["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_positions=positions,
        type_vocab_size=types,
    )


def _count(keys: Iterable[str], pattern: str) -> int:
    return 1 + max(int(m[1]) for m in (re.match(pattern, key) for key in keys) if m)


def _prefix(keys: Iterable[str], anchor: str, function: str) -> str:
    found = [key[: -len(anchor)] for key in keys if key.endswith(anchor)]
    if len(found) != 1:
        raise UserError(
            f"{function}: expected one key ending in {anchor!r}, found {len(found)}; this is not a published CARZero "
            "checkpoint (or not a state_dict)."
        )
    return found[0]


def _check_present(keys: Mapping[str, Tensor], wanted: Iterable[str], prefix: str) -> None:
    missing = [f"{prefix}{key}" for key in wanted if key not in keys]
    if missing:
        raise UserError(f"carzero.load: the checkpoint lacks {', '.join(missing)}.")


def _check_keys(
    keys: Mapping[str, Tensor], wanted: Iterable[str], allowed: Iterable[str], prefix: str, function: str
) -> None:
    wanted = list(wanted)
    missing = [prefix + key for key in wanted if key not in keys]
    unknown = [prefix + key for key in keys if key not in {*wanted, *allowed}]
    if missing or unknown:
        lists = (("missing", missing), ("unknown", unknown))
        parts = [f"{what} {', '.join(names[:5])}" for what, names in lists if names]
        raise UserError(
            f"{function}: the keys are not those of a published CARZero decoder: {len(missing)} missing and "
            f"{len(unknown)} unknown; {'; '.join(parts)}."
        )
