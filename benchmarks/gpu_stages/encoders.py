"""Encoders of the published sizes from one library, transformers: what a training step holds beside the op."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel


class Encoders(nn.Module):
    """ViT-B/16 at 224 px and BERT-base with random weights; toy sizes in a dry run.

    Args:
        toy: width 64, one block each, 32-px images.
    """

    def __init__(self, toy: bool) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
        sizes = sizes if toy else {}
        self.image_size, self.tokens = (32, 12) if toy else (224, 97)
        self.width = 64 if toy else 768
        self.images = ViTModel(ViTConfig(image_size=self.image_size, **sizes), add_pooling_layer=False)
        self.texts = BertModel(BertConfig(**sizes), add_pooling_layer=False)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token states ``[B, 1 + patches, D]`` and ``[B, 1 + tokens, D]``, the global row first."""
        words = self.texts(ids).last_hidden_state
        return self.images(pixels).last_hidden_state, torch.cat((words.mean(1, keepdim=True), words), 1)

    def batch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random pixels ``[B, 3, S, S]`` and word pieces ``[B, tokens]``."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(size, 3, self.image_size, self.image_size, generator=generator)
        ids = torch.randint(1000, 20000, (size, self.tokens), generator=generator)
        return pixels.to(device), ids.to(device)
