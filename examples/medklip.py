"""MedKLIP's and KAD's kind of model: all findings are the tokens of one query and attend to each other.

Three lines change: the import, and the two of `score_after`.
"""

from __future__ import annotations

import argparse

import torch
from drawn import Change, ImageEncoder, measure, radiographs
from published_fusion import TransformerDecoder, TransformerDecoderLayer
from torch import Tensor, nn

from carzero.data.phantom import FINDINGS
from carzero.dropin import decoder_weights, pair_logits


class Model(nn.Module):
    """Image rows, a vector for each finding, and a decoder that gives present or absent for each."""

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(width)
        self.findings = nn.Parameter(torch.randn(findings, width))
        layers = [TransformerDecoderLayer(width, 4, 2 * width, 0.1) for _ in range(4)]
        self.decoder = TransformerDecoder(layers, nn.LayerNorm(width))
        self.classifier = nn.Linear(width, 2)

    def score_before(self, images: Tensor) -> Tensor:
        """``[B, findings, 2]``."""
        queries = self.findings.unsqueeze(1).repeat(1, len(images), 1)
        rows, _ = self.decoder(queries, images.transpose(0, 1))
        return self.classifier(rows).transpose(0, 1)

    def score_after(self, images: Tensor) -> Tensor:
        """The same."""
        weights = decoder_weights(self.decoder, self.classifier)
        return pair_logits(images, self.findings.unsqueeze(0), weights).squeeze(1)


def run(pairs: int = 16, width: int = 128, rounds: int = 3) -> Change:
    """The model before and after the change."""
    torch.manual_seed(0)
    pixels, _ = radiographs(pairs)
    # MedKLIP asks for 75 findings
    model = Model(width, 75 if pairs > 8 else len(FINDINGS)).eval()
    images = model.image_encoder(pixels).detach().requires_grad_()
    return measure(
        "MedKLIP, KAD", 3, lambda: model.score_before(images), lambda: model.score_after(images),
        lambda: model.image_encoder(pixels), rounds,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    print(run(arguments.pairs, rounds=arguments.rounds))
