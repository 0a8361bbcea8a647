"""Area under the ROC curve, with bootstrap intervals that resample whole patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Equivalent to ``sklearn.metrics.roc_auc_score(labels, scores)``; NaN where one of the classes is absent.

    Args:
        labels: ``[N]`` of 0 and 1 (or bool).
        scores: ``[N]`` real numbers, higher for positives.

    Raises:
        ValueError: shapes differ, labels other than 0 and 1, or a score that is NaN.
    """
    y, s = _checked(labels, scores)
    return float(_weighted(y, s, np.ones((1, len(y))))[0])


def auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`auroc` with a percentile bootstrap interval; each resample draws whole groups (patients) with replacement.

    Args:
        labels, scores: as in `auroc`.
        groups: ``[N]`` patient of each sample; every sample is its own group when None.
        resamples: bootstrap draws; draws without a positive or without a negative are left out.
        level: coverage of the interval.
        seed: of the resampling.
    """
    y, s = _checked(labels, scores)
    weights = bootstrap_weights(np.arange(len(y)) if groups is None else np.asarray(groups), resamples, seed)
    draws = _weighted(y, s, weights)
    low, high = _percentiles(draws, level)
    return Interval(auroc(y, s), low, high)


def macro_auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over classes of `auroc`, with one resampling shared by all classes.

    Args:
        labels, scores: ``[N, C]``; classes without both a positive and a negative are left out of the mean.
        groups, resamples, level, seed: as in `auroc_interval`.
    """
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 2:
        raise ValueError(f"macro_auroc_interval: labels and scores must both be [N, C], got {y.shape} and {s.shape}.")
    weights = bootstrap_weights(np.arange(len(y)) if groups is None else np.asarray(groups), resamples, seed)
    draws, points = [], []
    for c in range(y.shape[1]):
        yc, sc = _checked(y[:, c], s[:, c])
        points.append(auroc(yc, sc))
        draws.append(_weighted(yc, sc, weights))
    if np.all(np.isnan(points)):
        return Interval(float("nan"), float("nan"), float("nan"))
    table = np.stack(draws)
    # a resample in which no class has both a positive and a negative says nothing
    table = table[:, ~np.isnan(table).all(0)]
    low, high = _percentiles(np.nanmean(table, axis=0), level)
    return Interval(float(np.nanmean(points)), low, high)


def bootstrap_weights(groups: NDArray, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each sample occurs in each resample of whole groups, ``[resamples, N]``."""
    names, member = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, member].astype(np.float64)


def _weighted(y: NDArray[np.bool_], s: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(s, kind="stable")
    ranked, w = s[order], weights[:, order]
    positive, negative = w * y[order], w * ~y[order]
    # negatives strictly below each distinct score, plus half of those at it
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    at = np.add.reduceat(negative, first, axis=1)
    below = np.cumsum(at, axis=1) - at
    won = np.add.reduceat(positive, first, axis=1) * (below + 0.5 * at)
    total = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, won.sum(1) / total, np.nan)


def _percentiles(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1 or not len(y):
        raise ValueError(f"auroc: labels and scores must both be [N] with N > 0, got {y.shape} and {s.shape}.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"auroc: labels must be 0 or 1, got {np.unique(y)[:5].tolist()}.")
    if np.isnan(s).any():
        raise ValueError(f"auroc: {int(np.isnan(s).sum())} of {len(s)} scores are NaN.")
    return y.astype(bool), s
