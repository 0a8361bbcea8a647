"""From a manifest to batches: which sentence stands for a report, and the views of a step's images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from carzero.data.dataset import ManifestDataset
from carzero.data.images import Augmentation, ImageProcessor
from carzero.data.shards import ShardedPairs, is_sharded
from carzero.data.squares import SquareCache
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.text import clean_text
from carzero.train.config import TrainConfig
from carzero.train.order import Course, Shards, batch_indices, pair_generator
from carzero.train.ranks import Ranks
from carzero.train.sentences import published_sentences, sentences, swap_sides

#: What `TrainConfig.augment` names; whether a view is mirrored is `TrainConfig.flip`.
AUGMENTATIONS = {
    "none": None,
    "crop": Augmentation(flip=0, degrees=0, translate=0, scale=(1, 1), brightness=(1, 1), contrast=(1, 1)),
    "affine": Augmentation(flip=0, degrees=10),
    "published": Augmentation(flip=0),
}


@dataclass(frozen=True)
class Batch:
    """One step's pairs: views and texts of this rank's share, the rest of the whole batch.

    Args:
        views: uint8 ``[B_local, S, S]`` grey.
        texts: `texts_per_image` of each of those images, those of the first image first, drawn from its report.
        said: the cleaned sentences that each of the batch's T texts consists of.
        known: for each of the batch's B images the cleaned sentences of its report.
    """

    views: Tensor
    texts: list[str]
    said: list[frozenset[str]]
    known: list[frozenset[str]]

    @property
    def pixels(self) -> Tensor:
        """float32 ``[B_local, 3, S, S]``, the model's input, where the views are."""
        return ImageProcessor().normalize_batch(self.views)

    def to(self, device: torch.device) -> Batch:
        """A copy whose views are on the device."""
        return replace(self, views=self.views.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy whose views lie where a CUDA device fetches them without a detour."""
        return replace(self, views=self.views.pin_memory())


class PairStream(Dataset[Batch]):
    """The batches of a run by step; batch s is the same whatever process asks, and whatever was asked before.

    Args:
        ranks: whose views are read; the batch's texts are drawn by every rank, which needs no exchange of them.

    Raises:
        UserError: as `ManifestDataset` or `ShardedPairs`.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.pairs, self._shards = _open(config)
        self.texts = self.pairs.texts
        cut = published_sentences if config.text == "published" else sentences
        lists = self.pairs.parts or [cut(text) for text in self.texts]
        self._sentences = [parts or [text] for parts, text in zip(lists, self.texts)]
        self._known = [frozenset(map(clean_text, parts)) for parts in self._sentences]
        self.course = Course(len(self.texts), config.batch_sizes)
        smallest = min(map(self.course.batch_size, config.batch_sizes))
        if smallest < self.ranks.world:
            raise UserError(
                f"train: a batch of {smallest} pairs cannot be shared by {self.ranks.world} processes; give "
                "a larger batch_size or start fewer."
            )
        self._augmentation = AUGMENTATIONS[config.augment]
        self._cache: SquareCache | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def prepare_for(self, model: CARZero) -> None:
        """Make views of the size that the model takes."""
        self.pairs.prepare(model.config.image.image_size)
        if self._shards is None and (self.config.cache or self.config.cache_folder is not None):
            self._cache = SquareCache(self.pairs.images, self.pairs.processor, self.config.cache_folder)

    def describe(self) -> str:
        """The set in one line."""
        parts = sum(map(len, self._sentences))
        sizes = {epoch: self.course.batch_size(epoch) for epoch in self.config.batch_sizes}
        each = ", ".join(f"{size} a step" + f" from epoch {epoch} on" * (epoch > 0) for epoch, size in sizes.items())
        kept = f"; {self._cache.held} prepared images in {self._cache.where}" if self._cache else ""
        if self._shards is not None:
            assert isinstance(self.pairs, ShardedPairs)
            kept = f"; {self.pairs.describe()}, {self._shards.mixed} mixed at a time"
        return f"{len(self)} pairs with {parts} sentences, {each}, from {self.config.manifest}{kept}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the pairs' texts and order: a run that goes on must find the same."""
        digest = hashlib.sha256("\n".join("\t".join(parts) for parts in self._sentences).encode())
        # one group of shards is the order of files
        if self._shards is not None and len(set(self._shards.of.tolist())) > self._shards.mixed:
            digest.update(self._shards.of.astype("<i8").tobytes())
        return digest.hexdigest()

    def image_paths(self, step: int) -> list[str]:
        """The files that this rank reads for a step."""
        indices = self._indices(step)
        return [self.pairs.images[i] for i in indices[self.ranks.part(len(indices))]]

    def _indices(self, step: int) -> list[int]:
        return batch_indices(
            step, pairs=len(self), batch_size=self.config.batch_sizes, seed=self.config.seed, shards=self._shards
        ).tolist()  # fmt: skip

    def __getitem__(self, step: int) -> Batch:
        indices = self._indices(step)
        part = self.ranks.part(len(indices))
        chosen, views, known = [], [], []
        for place, index in enumerate(indices):
            random = pair_generator(self.config.seed, step, index)
            flipped = self.config.flip != "none" and random.random() < self.config.flip_share
            swapped = flipped and self.config.flip == "sides"
            parts = list(map(swap_sides, self._sentences[index])) if swapped else self._sentences[index]
            known.append(frozenset(map(clean_text, parts)) if swapped else self._known[index])
            chosen += self._choose(parts, random)
            if part.start <= place < part.stop:
                view = self._view(index, random)
                views.append(torch.from_numpy(np.ascontiguousarray(view[:, ::-1] if flipped else view)))
        said = [frozenset(map(clean_text, parts)) for parts in chosen]
        per_image = len(chosen) // len(indices)
        texts = [" ".join(c) for c in chosen[part.start * per_image : part.stop * per_image]]
        return Batch(torch.stack(views), texts, said, known)

    def _choose(self, parts: list[str], random: np.random.Generator) -> list[list[str]]:
        """The sentences of each of the image's texts; single ones repeat only where the report has too few."""
        if self.config.text == "report":
            return [parts]
        count = self.config.texts_per_image
        if self.config.text in ("sentence", "published"):
            order = random.permutation(len(parts))
            return [[parts[order[k % len(parts)]]] for k in range(count)]
        lengths = (1 if random.random() < 0.5 else int(random.integers(2, 5)) for _ in range(count))
        return [[parts[k] for k in random.permutation(len(parts))[:length]] for length in lengths]

    def _view(self, index: int, random: np.random.Generator) -> NDArray[np.uint8]:
        processor = self.pairs.processor
        square = self.pairs.square(index) if self._cache is None else self._cache[index]
        if self._augmentation is not None:
            return self._augmentation(square, processor.size, random)
        low = (processor.side - processor.size) // 2
        return square[low : low + processor.size, low : low + processor.size]


def _open(config: TrainConfig) -> tuple[ManifestDataset | ShardedPairs, Shards | None]:
    """The pairs that a run's manifest names, and how they are shuffled where they lie in shards."""
    if not is_sharded(config.manifest):
        return ManifestDataset(config.manifest, split=config.split), None
    if config.cache:
        raise UserError(f"train: {config.manifest} holds prepared images: leave cache out.")
    pairs = ShardedPairs(config.manifest, split=config.split, kept_in=config.cache_folder)
    return pairs, Shards(pairs.shard_of, config.shuffle_shards)
