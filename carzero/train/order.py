"""Which pairs, and which sentence of each, a step sees: a function of the seed and the step alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """Full batches in one pass; the pairs left over come in another epoch's shuffle."""
    return max(1, pairs // batch_size)


def batch_indices(step: int, *, pairs: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Indices ``[B]`` of a step's pairs: a slice of the epoch's own permutation, without a repeat within an epoch."""
    epoch, slot = divmod(step, steps_per_epoch(pairs, batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(pairs)
    return order[slot * batch_size : (slot + 1) * batch_size]


def pair_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """Random numbers of one pair in one step (its sentence, its augmentation), the same in any process."""
    return np.random.default_rng((seed, step, index))


def dropout_seed(seed: int, step: int) -> int:
    """Seed of the decoder's dropout in one step, 62 bits, the same on every rank."""
    return int(np.random.default_rng((seed, step)).integers(2**62))
