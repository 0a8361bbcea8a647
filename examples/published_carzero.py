"""The published CARZero's kind of model (VECL's too): one fusion module scores both directions.

Two lines change: `import carzero` and `carzero.patch(model)`. Parameters and checkpoints stay as they are.
"""

from __future__ import annotations

import argparse

import torch
from drawn import Change, ImageEncoder, TextEncoder, measure, radiographs, word_ids
from published_fusion import Fusion
from torch import Tensor, nn

import carzero
from carzero.dropin import unpatch


class Model(nn.Module):
    """A repository's model; `logits` is its loop over all pairs."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = ImageEncoder(width), TextEncoder(vocabulary, width)
        self.fusion = Fusion(width=width)

    def encode(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        images, words = self.image_encoder(pixels), self.text_encoder(ids)
        return images, torch.cat((words.mean(1, keepdim=True), words), 1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        image_memory = self.fusion(images, texts[:, 0]).squeeze(-1)
        text_memory = self.fusion(texts, images[:, 0]).squeeze(-1)
        return torch.stack((image_memory, text_memory.T))


def run(pairs: int = 32, width: int = 128, rounds: int = 3) -> Change:
    """The model before and after the change."""
    torch.manual_seed(0)
    pixels, reports = radiographs(pairs)
    ids, _, vocabulary = word_ids(reports)
    # without dropout, whose masks are others after the change
    model = Model(vocabulary, width).eval()
    images, texts = (rows.detach().requires_grad_() for rows in model.encode(pixels, ids))

    def before() -> Tensor:
        unpatch(model)
        return model.logits(images, texts)

    def after() -> Tensor:
        carzero.patch(model)
        logits = model.logits(images, texts)
        unpatch(model)
        return logits

    return measure(
        "CARZero, VECL", 2, before, after, lambda: torch.cat(model.encode(pixels, ids), 1), rounds
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32, help="images, and reports (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    print(run(arguments.pairs, rounds=arguments.rounds))
