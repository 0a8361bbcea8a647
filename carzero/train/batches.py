"""From a manifest to batches: which sentence stands for a report, and the pixels of a step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carzero.data.dataset import ManifestDataset
from carzero.data.images import Augmentation, ImageProcessor
from carzero.data.workers import forkable_opencv, start_reader
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.text import clean_text
from carzero.train.config import TrainConfig
from carzero.train.order import batch_indices, pair_generator
from carzero.train.ranks import Ranks

#: What `TrainConfig.augment` names. A flip would swap the sides that a report names.
AUGMENTATIONS = {
    "none": None,
    "crop": Augmentation(flip=0, degrees=0, translate=0, scale=(1, 1), brightness=(1, 1), contrast=(1, 1)),
    "affine": Augmentation(flip=0, degrees=10),
}

# a full stop, question or exclamation mark, or semicolon before white space, or a line break: "1.5 cm" stays whole
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


@dataclass(frozen=True)
class Batch:
    """One step's pairs: pixels and texts of this rank's share, the rest of the whole batch.

    Args:
        pixels: float32 ``[B_local, 3, S, S]``.
        texts: `texts_per_image` of each of those images, those of the first image first, drawn from its report.
        said: the cleaned sentences that each of the batch's T texts consists of.
        known: for each of the batch's B images the cleaned sentences of its report.
    """

    pixels: Tensor
    texts: list[str]
    said: list[frozenset[str]]
    known: list[frozenset[str]]


def sentences(report: str) -> list[str]:
    """The sentences of a report that hold a word, without the enumeration before them."""
    parts = (re.sub(r"^\s*\d+\.\s*", "", part).strip() for part in _SENTENCE_END.split(report))
    return [part for part in parts if any(c.isalpha() for c in part)]


class PairStream(Dataset[Batch]):
    """The batches of a run by step; batch s is the same whatever process asks, and whatever was asked before.

    Args:
        ranks: whose pixels are read; the batch's texts are drawn by every rank, which needs no exchange of them.

    Raises:
        UserError: as `ManifestDataset`.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.pairs = ManifestDataset(config.manifest)
        self.texts = self.pairs.texts
        self._sentences = [sentences(text) or [text] for text in self.texts]
        self._known = [frozenset(map(clean_text, parts)) for parts in self._sentences]
        self.batch_size = min(config.batch_size, len(self.texts))
        if self.batch_size < self.ranks.world:
            raise UserError(
                f"train: a batch of {self.batch_size} pairs cannot be shared by {self.ranks.world} processes; give "
                "a larger batch_size or start fewer."
            )
        self._augmentation = AUGMENTATIONS[config.augment]
        self._squares: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def prepare_for(self, model: CARZero) -> None:
        """Make pixels of the size that the model takes."""
        self.pairs.processor = ImageProcessor(size=model.config.image.image_size)

    def describe(self) -> str:
        """The set in one line."""
        parts = sum(map(len, self._sentences))
        return f"{len(self)} pairs with {parts} sentences, {self.batch_size} a step, from {self.config.manifest}"

    def __getitem__(self, step: int) -> Batch:
        indices = batch_indices(step, pairs=len(self), batch_size=self.batch_size, seed=self.config.seed).tolist()
        part = self.ranks.part(len(indices))
        chosen, pixels = [], []
        for place, index in enumerate(indices):
            random = pair_generator(self.config.seed, step, index)
            chosen += self._choose(self._sentences[index], random)
            if part.start <= place < part.stop:
                pixels.append(self._pixels(index, random))
        said = [frozenset(map(clean_text, parts)) for parts in chosen]
        per_image = len(chosen) // len(indices)
        texts = [" ".join(c) for c in chosen[part.start * per_image : part.stop * per_image]]
        return Batch(torch.stack(pixels), texts, said, [self._known[i] for i in indices])

    def _choose(self, parts: list[str], random: np.random.Generator) -> list[list[str]]:
        """The sentences of each of the image's texts; single ones repeat only where the report has too few."""
        if self.config.text == "report":
            return [parts]
        count = self.config.texts_per_image
        if self.config.text == "sentence":
            order = random.permutation(len(parts))
            return [[parts[order[k % len(parts)]]] for k in range(count)]
        lengths = (1 if random.random() < 0.5 else int(random.integers(2, 5)) for _ in range(count))
        return [[parts[k] for k in random.permutation(len(parts))[:length]] for length in lengths]

    def _pixels(self, index: int, random: np.random.Generator) -> Tensor:
        if not self.config.cache:
            return self.pairs.pixels(index, self._augmentation, random)
        processor = self.pairs.processor
        if index not in self._squares:
            self._squares[index] = processor.square(self.pairs.images[index])[0]
        square = self._squares[index]
        if self._augmentation is not None:
            return processor.normalize(self._augmentation(square, processor.size, random))
        low = (processor.side - processor.size) // 2
        return processor.normalize(square[low : low + processor.size, low : low + processor.size])


def batches(stream: PairStream, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps first .. last-1, read ahead by `workers` processes."""
    steps: Iterable[int] = range(first, last)
    if not workers:
        return (stream[step] for step in steps)
    loader = DataLoader(stream, sampler=list(steps), batch_size=None, num_workers=workers, worker_init_fn=start_reader)
    # the workers are forked here
    with forkable_opencv():
        return iter(loader)
