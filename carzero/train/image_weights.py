"""Weights for the image encoder from outside: timm, and the checkpoints that chest radiograph models start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carzero.errors import UserError
from carzero.models.image_encoder import ImageEncoder
from carzero.models.pickled import read_tensors

#: Where a checkpoint keeps a Vision Transformer under timm's names: M3AE, this package and the published CARZero, none.
_PREFIXES = ("vision_encoder.", "image_encoder.model.", "CARZero.img_encoder.model.", "img_encoder.model.", "")
_ANCHOR = "patch_embed.proj.weight"


def image_tensors(source: str) -> dict[str, Tensor]:
    """A Vision Transformer's tensors under timm's names.

    Args:
        source: a file (.ckpt, .pth, .pt, .bin or .safetensors) or a folder with ``model.safetensors`` or
            ``pytorch_model.bin``, in the layout of timm, M3AE (``vision_encoder.*``), MRM or CARZero; else a timm name,
            whose weights timm fetches from the hub.

    Raises:
        UserError: it cannot be read or fetched, or holds no Vision Transformer.

    Source: published file ``CARZero/models/transformer_backbones.py``, ``load_weight``.
    """
    path = Path(source)
    if not path.exists():
        return _from_timm(source)
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not found:
            raise UserError(f"train: init.image {path} holds neither model.safetensors nor pytorch_model.bin.")
        path = found[0]
    content = _read(path)
    for prefix in _PREFIXES:
        if f"{prefix}{_ANCHOR}" in content:
            return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
    raise UserError(
        f"train: init.image {path} holds no Vision Transformer: no key {_ANCHOR}, with or without "
        f"{', '.join(p for p in _PREFIXES if p)} before it; its first keys are {', '.join(list(content)[:3])}."
    )


@torch.no_grad()
def load_image_weights(encoder: ImageEncoder, tensors: Mapping[str, Tensor], source: str) -> str:
    """Put tensors into an encoder, each of its own; returns what was done, in words.

    A position embedding for another image size is resampled (bicubic, timm). Tensors that the encoder has no place for
    (a classifier, a reconstruction decoder) are left out and counted.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    from timm.layers import resample_abs_pos_embed

    tensors = dict(tensors)
    wanted = encoder.model.state_dict()
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise UserError(
            f"train: init.image {source} lacks {len(missing)} tensors of the image encoder {encoder.config.name}, the "
            f"first {missing[0]}; choose the model that it was trained as."
        )
    position, place = tensors["pos_embed"], wanted["pos_embed"]
    if position.shape != place.shape and position.shape[-1] == place.shape[-1]:
        tensors["pos_embed"] = resample_abs_pos_embed(
            position, list(encoder.grid), num_prefix_tokens=encoder.model.num_prefix_tokens
        )
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            raise UserError(
                f"train: {key} of init.image {source} must have shape {tuple(value.shape)} for the model asked for, "
                f"got {tuple(tensors[key].shape)}; choose the model that it was trained as."
            )
        value.copy_(tensors[key])
    dropped = len(tensors.keys() - wanted.keys())
    others = f", {dropped} others left out" if dropped else ""
    return f"image encoder of {source} ({len(wanted)} tensors{others})"


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"train: init.image {path} is damaged or no safetensors file ({error}).") from None
    content: Any = read_tensors(path)
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise UserError(f"train: init.image {path} holds no state dict but a {type(content).__name__}.")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name.removeprefix("timm/"), pretrained=True, num_classes=0).state_dict()
    except Exception as error:
        # timm and the hub raise a dozen kinds; each means that the weights cannot be had
        raise UserError(
            f"train: the weights of init.image {name!r} cannot be fetched ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}). Without a network give the file of its state dict."
        ) from error
