"""What the examples share: drawn radiographs with reports, two small encoders, and the measurement of a change."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from carzero.data.phantom import PhantomSet

WORDS = 24


def radiographs(count: int, size: int = 64) -> tuple[Tensor, list[str]]:
    """``[count, 1, size, size]`` pixels in 0..1 and a report of each."""
    phantoms = list(PhantomSet("train", 0, count, seed=0, size=size))
    pixels = torch.stack([torch.from_numpy(p.image) for p in phantoms]).unsqueeze(1) / 255
    return pixels, [" ".join(p.report) for p in phantoms]


def word_ids(texts: list[str]) -> tuple[Tensor, Tensor, int]:
    """Word numbers ``[N, WORDS]``, 0 where there is no word; how many each has; how many words there are."""
    split = [text.lower().replace(".", "").split()[:WORDS] for text in texts]
    numbers = {word: i + 1 for i, word in enumerate(sorted({w for words in split for w in words}))}
    ids = torch.zeros(len(split), WORDS, dtype=torch.int64)
    for row, words in zip(ids, split):
        row[: len(words)] = torch.tensor([numbers[w] for w in words])
    return ids, torch.tensor([len(words) for words in split]), len(numbers) + 1


class ImageEncoder(nn.Module):
    """Patches of 8 pixels and two transformer layers: ``[B, 1 + patches, D]``, the global row first."""

    def __init__(self, width: int, size: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 8, 8)
        self.position = nn.Parameter(torch.randn((size // 8) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, pixels: Tensor) -> Tensor:
        rows = self.patches(pixels).flatten(2).transpose(1, 2)
        return self.layers(torch.cat((rows.mean(1, keepdim=True), rows), 1) + self.position)


class TextEncoder(nn.Module):
    """Words ``[B, WORDS, D]`` through two transformer layers; zeros where there is no word."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(WORDS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.layers(self.words(ids) + self.position, src_key_padding_mask=ids == 0)
        return rows * (ids != 0).unsqueeze(-1)


@dataclass(frozen=True)
class Change:
    """What a repository gains.

    Args:
        adopter: whose code it stands for.
        lines: lines of it that change.
        difference: largest difference of a logit, over the largest logit.
        before, after: milliseconds of all pairs' logits and their gradients, medians.
        encoders: milliseconds of the encoders' forward and backward.
        kept_before, kept_after: MiB that the graph of all pairs' logits keeps for its backward.
    """

    adopter: str
    lines: int
    difference: float
    before: float
    after: float
    encoders: float
    kept_before: float
    kept_after: float

    def __str__(self) -> str:
        return (
            f"{self.adopter}: {self.lines} lines, logits differ by {self.difference:.1e} of the largest, all pairs "
            f"{self.before:.0f} -> {self.after:.0f} ms and {self.kept_before:.0f} -> {self.kept_after:.0f} MiB kept, "
            f"share of the step {self.share(self.before):.0%} -> {self.share(self.after):.0%}"
        )

    def share(self, scoring: float) -> float:
        """Of a step that also encodes."""
        return scoring / (scoring + self.encoders)


def measure(
    adopter: str, lines: int, before: Callable[[], Tensor], after: Callable[[], Tensor], encode: Callable[[], Tensor],
    rounds: int,
) -> Change:  # fmt: skip
    """Check that both give the same logits, then time them and the encoders in turns.

    Args:
        before, after: logits of all pairs, with a graph to the encoders' rows.
        encode: a number that depends on all that the encoders give.
    """
    old, new = before(), after()
    difference = float(((old - new).abs().max() / old.abs().max()).detach())
    if not difference < 1e-4:
        raise RuntimeError(f"{adopter}: the logits differ by {difference:.1e} of the largest.")
    seconds: dict[str, list[float]] = {"before": [], "after": [], "encode": []}
    for number in range(rounds + 1):
        for name, run in (("before", before), ("after", after), ("encode", encode)):
            start = time.perf_counter()
            run().square().mean().backward()
            # the first round loads and allocates
            if number:
                seconds[name].append(time.perf_counter() - start)
    medians = [1000 * statistics.median(seconds[name]) for name in ("before", "after", "encode")]
    return Change(adopter, lines, difference, *medians, kept(before), kept(after))


def kept(run: Callable[[], Tensor]) -> float:
    """MiB that the graph of a forward keeps, each storage once."""
    found: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        # held until they are counted, so that no address serves twice
        found[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(t.untyped_storage().nbytes() for t in found.values()) / 2**20
