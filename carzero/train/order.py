"""Which pairs, and which sentence of each, a step sees: a function of the seed and the step alone.

So the position of a run is one integer, the number of steps done, whatever the number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """Full batches in one pass; the pairs left over come in another epoch's shuffle."""
    return max(1, pairs // batch_size)


@dataclass(frozen=True)
class Course:
    """How steps fall into epochs when the batch size changes between them.

    Args:
        pairs: N.
        sizes: pairs of a step, by the first epoch for which it holds, from epoch 0 on, in order.
    """

    pairs: int
    sizes: Mapping[int, int]

    def batch_size(self, epoch: int) -> int:
        """Pairs of a step in this epoch, at most N."""
        return min(self.pairs, next(size for first, size in reversed(list(self.sizes.items())) if first <= epoch))

    def steps(self, epochs: int) -> int:
        """Steps in the first `epochs` epochs."""
        starts = [*self.sizes, max(epochs, *self.sizes)]
        return sum(
            max(0, min(end, epochs) - start) * steps_per_epoch(self.pairs, self.batch_size(start))
            for start, end in itertools.pairwise(starts)
        )

    def place(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its number in it."""
        for start, end in zip(self.sizes, [*list(self.sizes)[1:], None]):
            first, each = self.steps(start), steps_per_epoch(self.pairs, self.batch_size(start))
            if end is None or step < first + (end - start) * each:
                epochs, slot = divmod(step - first, each)
                return start + epochs, slot
        raise AssertionError("the last size holds for ever")


@dataclass(frozen=True, eq=False)
class Shards:
    """Which shard each pair lies in, and how many shards a step may touch.

    Args:
        of: int64 ``[N]``.
        mixed: shards whose pairs are shuffled together; an epoch draws anew which.
    """

    of: NDArray[np.int64]
    mixed: int


def batch_indices(
    step: int, *, pairs: int, batch_size: int | Mapping[int, int], seed: int, shards: Shards | None = None
) -> NDArray[np.int64]:
    """Indices ``[B]`` of a step's pairs: a slice of the epoch's own permutation, without a repeat within an epoch.

    With shards the permutation goes through groups of `mixed` shards, one group after the other; where one group holds
    all, it is the permutation without shards.
    """
    course = Course(pairs, batch_size if isinstance(batch_size, Mapping) else {0: batch_size})
    epoch, slot = course.place(step)
    size = course.batch_size(epoch)
    return _permutation(seed, epoch, pairs, shards)[slot * size : (slot + 1) * size]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, pairs: int, shards: Shards | None) -> NDArray[np.int64]:
    """An epoch's order; ten million pairs take 0.2 s, which no step should pay again."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(pairs)
    if shards is None:
        return order
    present, of = np.unique(shards.of, return_inverse=True)
    group = random.permutation(len(present)) // shards.mixed
    # a stable sort keeps the random order inside a group
    return order[np.argsort(group[of[order]], kind="stable")]


def pair_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """Random numbers of one pair in one step (its sentence, its augmentation), the same in any process."""
    return np.random.default_rng((seed, step, index))


def dropout_seed(seed: int, step: int) -> int:
    """Seed of the decoder's dropout in one step, 62 bits, the same on every rank."""
    return int(np.random.default_rng((seed, step)).integers(2**62))
