"""Random numbers that depend on nothing but the phantom's seed, its index and what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


class Stream:
    """One named sequence of draws, independent of every other.

    Only `Generator.random` and raw bytes are used: both follow directly from PCG64's guaranteed bit stream, so they do
    not change between numpy versions as the derived distributions may.

    Args:
        key: non-negative integers: seed, index, purpose and so on.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def between(self, low: float, high: float) -> float:
        """Uniform in low..high."""
        return low + (high - low) * self._generator.random()

    def many(self, count: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """float64 [count], uniform in low..high."""
        return low + (high - low) * self._generator.random(count)

    def normal(self, mean: float = 0.0, spread: float = 1.0) -> float:
        """Bell-shaped within 3.46 standard deviations (the sum of 12 uniforms)."""
        return mean + spread * (float(self._generator.random(12).sum()) - 6.0)

    def chance(self, share: float) -> bool:
        """True in this share of draws."""
        return self._generator.random() < share

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self._generator.random() * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        order = np.argsort(self._generator.random(len(items)), kind="stable")
        return [items[i] for i in order[:count]]

    def grain(self, rows: int, columns: int) -> NDArray[np.float32]:
        """float32 [rows, columns] of independent, near-normal noise with mean 0 and standard deviation 1."""
        raw = np.frombuffer(self._generator.bytes(rows * columns * 2), np.uint8).reshape(2, rows, columns)
        total = raw[0].astype(np.float32) + raw[1]
        # The sum of two bytes has mean 255 and variance 2 (256^2 - 1) / 12.
        return (total - np.float32(255)) * np.float32(1 / 104.512)
