"""Images to tokens: a timm Vision Transformer with its CLS token and its patch tokens."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import torch
from torch import Tensor, nn

from carzero.errors import UserError

from .config import ImageEncoderConfig


class ImageEncoder(nn.Module):
    """Vision Transformer whose global vector and local tokens both follow the final norm.

    *Equivalent to*::

        tokens = model.forward_features(pixels)         # timm, after the final LayerNorm
        query, local = tokens[:, 0], tokens[:, model.num_prefix_tokens:]

    Source: CARZero section 3.1; published file ``CARZero/models/transformer_backbones.py``.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        import timm

        super().__init__()
        if not timm.is_model(config.name):
            close = difflib.get_close_matches(config.name, timm.list_models(), n=3, cutoff=0.0)
            raise UserError(f"ImageEncoder: timm has no model {config.name!r}; near it are {', '.join(close)}.")
        overrides: dict[str, Any] = {
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "patch_size": config.patch,
            "mlp_ratio": config.mlp_ratio,
        }
        try:
            self.model: Any = timm.create_model(
                config.name,
                pretrained=False,
                num_classes=0,
                img_size=config.image_size,
                in_chans=config.in_chans,
                **{name: value for name, value in overrides.items() if value is not None},
            )
        except TypeError as error:
            raise UserError(f"ImageEncoder: {config.name} is no Vision Transformer ({error}).") from error
        if getattr(self.model, "cls_token", None) is None or not isinstance(self.model.norm, nn.LayerNorm):
            raise UserError(
                f"ImageEncoder: {config.name} has no CLS token followed by a final LayerNorm; choose a model such as "
                "vit_base_patch16_224."
            )
        # timm draws every matrix with a standard deviation of 0.02
        with torch.no_grad():
            for name, module in self.model.named_modules():
                if name.startswith("blocks.") and isinstance(module, nn.Linear):
                    module.weight.mul_(config.init_std / 0.02)
        if config.stem == "conv":
            embedding: Any = self.model.patch_embed
            embedding.proj = _conv_stem(config.in_chans, self.width, embedding.patch_size[0])
        self.config = config
        if config.position == "sincos":
            self._fix_sincos_positions()

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.model.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.model.patch_embed.grid_size

    def _fix_sincos_positions(self) -> None:
        from timm.layers import build_sincos2d_pos_embed

        position = self.model.pos_embed
        if self.width % 4:
            raise UserError(f"ImageEncoder: position='sincos' needs a width that is a multiple of 4, got {self.width}.")
        if not position.is_meta:
            with torch.no_grad():
                grid = build_sincos2d_pos_embed(list(self.grid), self.width)
                position.zero_()
                position[0, position.shape[1] - grid.shape[0] :] = grid
        position.requires_grad_(False)

    def set_image_size(self, image_size: int) -> None:
        """Take images of another size from now on; timm resamples the position embedding (bicubic)."""
        self.config = dataclasses.replace(self.config, image_size=image_size)
        frozen = not self.model.pos_embed.requires_grad
        self.model.set_input_size(img_size=(image_size, image_size))
        self.model.pos_embed.requires_grad_(not frozen)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            pixels: ``[B, C, S, S]`` floating, normalised as `carzero.ImageProcessor` does, S = `config.image_size`.

        Returns:
            query ``[B, D]`` and local tokens ``[B, S²/patch², D]``, both after the final LayerNorm.

        Raises:
            UserError: pixels are integers or of another shape.
        """
        want = (self.config.in_chans, self.config.image_size, self.config.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != want:
            raise UserError(
                f"ImageEncoder: pixels must have shape [B, {want[0]}, {want[1]}, {want[2]}], got "
                f"{list(pixels.shape)}; carzero.ImageProcessor makes such tensors."
            )
        if not pixels.is_floating_point():
            raise UserError(
                f"ImageEncoder: pixels must be floating and normalised, got {pixels.dtype}; carzero.ImageProcessor "
                "makes such tensors."
            )
        if self.config.stem == "conv":
            # convolutions and pooling take a fifth less time with channels last
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        tokens = self.model.forward_features(pixels)
        return tokens[:, 0], tokens[:, self.model.num_prefix_tokens :]


def _conv_stem(in_chans: int, width: int, patch: int) -> nn.Sequential:
    """3x3 convolutions ``[B, C, S, S] -> [B, width, S/patch, S/patch]``, wider as they halve the image.

    The first halves by its stride, the others by a maximum, which keeps a small bright spot; batch norm follows each.
    Source: Xiao et al., "Early convolutions help transformers see better" (NeurIPS 2021), with VGG's max pooling.
    """
    layers: list[nn.Module] = []
    channels = in_chans
    for index in range(patch.bit_length() - 1):
        # 24, 48, 96, 128 for patch 16
        wider = min(24 * 2**index, 128)
        stride = 2 if index == 0 else 1
        layers += [nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if index else []
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))
