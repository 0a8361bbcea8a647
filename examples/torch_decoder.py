"""A plain `nn.TransformerDecoder` (norms after, GELU) that scores a text's words against an image, pair by pair.

Three lines change: the import, and the two of `score_after`.
"""

from __future__ import annotations

import argparse

import torch
from drawn import Change, ImageEncoder, TextEncoder, measure, radiographs, word_ids
from torch import Tensor, nn

from carzero.dropin import decoder_weights, pair_logits


class Model(nn.Module):
    """Two encoders, a decoder and a head that reads the first word."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = ImageEncoder(width), TextEncoder(vocabulary, width)
        layer = nn.TransformerDecoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 3), nn.Linear(width, 1)

    def score_before(self, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """``[B, T]``: a column for each text, which is repeated for all images."""
        columns = []
        for text, there in zip(words, mask):
            rows = self.decoder(
                text.repeat(len(images), 1, 1), images, tgt_key_padding_mask=~there.repeat(len(images), 1)
            )
            columns.append(self.head(rows[:, 0]))
        return torch.cat(columns, 1)

    def score_after(self, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """The same."""
        weights = decoder_weights(self.decoder, self.head, readout="first")
        return pair_logits(images, words, weights, query_mask=mask)


def run(pairs: int = 16, width: int = 128, rounds: int = 3) -> Change:
    """The model before and after the change."""
    torch.manual_seed(0)
    pixels, reports = radiographs(pairs)
    ids, _, vocabulary = word_ids(reports)
    model = Model(vocabulary, width).eval()
    images, words = (r.detach().requires_grad_() for r in (model.image_encoder(pixels), model.text_encoder(ids)))
    mask = ids != 0

    def encode() -> Tensor:
        return torch.cat((model.image_encoder(pixels), model.text_encoder(ids)), 1)

    return measure(
        "nn.TransformerDecoder", 3, lambda: model.score_before(images, words, mask),
        lambda: model.score_after(images, words, mask), encode, rounds,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16, help="images, and reports (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    print(run(arguments.pairs, rounds=arguments.rounds))
