"""GLoRIA's local similarity: a loop over captions that repeats each for all images. RadZero's and FILIP's go likewise.

Two lines change: the import, and the one of `score_after`.
"""

from __future__ import annotations

import argparse

import torch
from drawn import WORDS, Change, ImageEncoder, TextEncoder, measure, radiographs, word_ids
from torch import Tensor
from torch.nn import functional as F

from carzero.similarities import word_region


def score_before(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """``[B, T]``: attention of each caption's words to every image's regions, and cosines with what they attend to."""
    columns = []
    for text, length in zip(words, lengths):
        word = text[:length].repeat(len(regions), 1, 1)
        attention = torch.softmax(regions @ word.transpose(1, 2), 2)
        attention = torch.softmax(4.0 * attention.transpose(1, 2), 2)
        cosine = F.cosine_similarity(attention @ regions, word, dim=2)
        columns.append(torch.log(torch.exp(5.0 * cosine).sum(1)))
    return torch.stack(columns, 1)


def score_after(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """The same."""
    return word_region(regions, words, token_count=(torch.arange(WORDS) < lengths[:, None]).int())


def run(pairs: int = 48, width: int = 128, rounds: int = 3) -> Change:
    """The similarity before and after the change."""
    torch.manual_seed(0)
    pixels, reports = radiographs(pairs)
    ids, lengths, vocabulary = word_ids(reports)
    image_encoder, text_encoder = ImageEncoder(width), TextEncoder(vocabulary, width)
    regions = image_encoder(pixels)[:, 1:].detach().requires_grad_()
    words = text_encoder(ids).detach().requires_grad_()
    return measure(
        "GLoRIA", 2, lambda: score_before(regions, words, lengths), lambda: score_after(regions, words, lengths),
        lambda: torch.cat((image_encoder(pixels), text_encoder(ids)), 1), rounds,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=48, help="images, and reports (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    print(run(arguments.pairs, rounds=arguments.rounds))
