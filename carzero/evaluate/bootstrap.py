"""Percentile bootstrap that draws whole units (patients) with replacement, for any statistic of weighted samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Resamples drawn at a time: their counts stay in cache, and memory does not grow with the number of resamples.
BLOCK = 32
#: Keeps the draws apart from data that were simulated by ``default_rng(seed)``: counts come from the same uniform
#: numbers, and labels made of them would all be drawn, or none.
_STREAM = 0xB0075


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resampling:
    """Resamples of whole units with replacement, the same ones whenever it is iterated.

    *Equivalent to* drawing as many units as there are, with replacement, and taking all samples of each drawn unit as
    often as it was drawn.

    Args:
        units: ``[N]`` the unit (patient) of each sample, of any sortable type; or N, where every sample is its own.
        resamples: R, number of draws.
        seed: of the draws.

    Attributes:
        member: int ``[N]``, the number of each sample's unit.
        size: G, how many units there are.
    """

    def __init__(self, units: ArrayLike | int, *, resamples: int = 1000, seed: int = 0) -> None:
        if resamples < 1:
            raise ValueError(f"Resampling: resamples must be at least 1, got {resamples}.")
        labels = np.arange(units) if isinstance(units, int | np.integer) else np.asarray(units)
        if labels.ndim != 1 or not len(labels):
            raise ValueError(f"Resampling: units must be [N] with N > 0, got shape {labels.shape}.")
        names, member = np.unique(labels, return_inverse=True)
        self.member: NDArray[np.intp] = member.reshape(-1)
        self.size = len(names)
        self.resamples, self.seed = resamples, seed

    def counts(self, block: int = BLOCK) -> Iterator[NDArray[np.int32]]:
        """How often each unit was drawn: int32 ``[G, B]`` for B resamples at a time, B at most `block`."""
        generator = np.random.default_rng([self.seed, _STREAM])
        share = np.full(self.size, 1 / self.size)
        for start in range(0, self.resamples, block):
            drawn = generator.multinomial(self.size, share, size=min(block, self.resamples - start))
            yield np.ascontiguousarray(drawn.T, dtype=np.int32)

    def weights(self, block: int = BLOCK) -> Iterator[NDArray[np.float64]]:
        """How often each sample occurs: float64 ``[B, N]`` for B resamples at a time."""
        for counts in self.counts(block):
            yield counts.T[:, self.member].astype(np.float64)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    units: ArrayLike | int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    block: int = BLOCK,
) -> NDArray[np.float64]:
    """Draws of a statistic over resamples of whole units, ``[R, ...]``.

    Args:
        statistic: weights float64 ``[B, N]`` (how often each sample occurs) -> ``[B, ...]``.
        units, resamples, seed: as in `Resampling`.
        block: resamples handed over at a time.
    """
    resampling = Resampling(units, resamples=resamples, seed=seed)
    return np.concatenate([np.asarray(statistic(w), dtype=np.float64) for w in resampling.weights(block)])


def mean_draws(
    values: ArrayLike, units: ArrayLike | int | None = None, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of each column over resamples of whole units, ``[R, K]``; NaN values are left out of their column's mean.

    Args:
        values: ``[N]`` (K = 1) or ``[N, K]``; NaN where a sample says nothing.
        units: ``[N]`` as in `Resampling`; every sample is its own unit when None.
        resamples, seed: as in `Resampling`.
    """
    table = _columns(values)
    resampling = Resampling(len(table) if units is None else units, resamples=resamples, seed=seed)
    if len(resampling.member) != len(table):
        raise ValueError(
            f"mean_draws: values and units must be as many, got {len(table)} and {len(resampling.member)}."
        )
    known = ~np.isnan(table)
    # sums of a unit's samples, so that a resample is one product of [B, G] by [G, 2 K]
    sums = np.zeros((resampling.size, 2 * table.shape[1]))
    np.add.at(sums, resampling.member, np.concatenate([np.where(known, table, 0.0), known], axis=1))
    total = np.concatenate([counts.T @ sums for counts in resampling.counts()])
    with np.errstate(invalid="ignore", divide="ignore"):
        return total[:, : table.shape[1]] / total[:, table.shape[1] :]


def mean_interval(
    values: ArrayLike,
    units: ArrayLike | int | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of the values and its percentile interval over resamples of whole units.

    Args:
        values: ``[N]``; NaN is left out. ``[N, K]``: the mean over columns of each column's mean, as for findings that
            not every image has; columns without a value are left out.
        units, resamples, seed: as in `mean_draws`.
        level: coverage.
    """
    draws = _mean_of_columns(mean_draws(values, units, resamples=resamples, seed=seed))
    table = _columns(values)
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        means = np.where(known, table, 0.0).sum(0) / known.sum(0)
    return percentile_interval(float(_mean_of_columns(means[None])[0]), draws, level)


def percentile_interval(value: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """The percentile interval of a figure; draws that are NaN (a statistic that is not defined there) are left out."""
    if not 0 < level < 1:
        raise ValueError(f"percentile_interval: level must be between 0 and 1, got {level}.")
    known = np.asarray(draws, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known) or np.isnan(value):
        return Interval(float(value), float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _columns(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(f"mean_draws: values must be [N] or [N, K] and not empty, got shape {table.shape}.")
    return table[:, None] if table.ndim == 1 else table


def _mean_of_columns(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each row without its NaN; NaN for a row of nothing else."""
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0.0).sum(1) / known.sum(1)
