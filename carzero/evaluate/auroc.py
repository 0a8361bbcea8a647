"""Area under the ROC curve, with bootstrap intervals that resample whole patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carzero.evaluate.bootstrap import Interval, Resampling, percentile_interval
from carzero.evaluate.ranking import Ranked


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
    ranked = Ranked(y, s, np.arange(len(y)), len(y))
    return float(ranked.figures(np.ones((len(y), 1), np.int32)).auroc[0])


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
    resampling = Resampling(len(y) if groups is None else groups, resamples=resamples, seed=seed)
    return percentile_interval(auroc(y, s), _draws(y, s, resampling), level)


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
    resampling = Resampling(len(y) if groups is None else groups, resamples=resamples, seed=seed)
    columns = [_checked(y[:, c], s[:, c]) for c in range(y.shape[1])]
    points = np.array([auroc(*column) for column in columns])
    if np.isnan(points).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    table = np.stack([_draws(*column, resampling) for column in columns])
    # a resample in which no class has both a positive and a negative says nothing
    table = table[:, ~np.isnan(table).all(0)]
    return percentile_interval(float(np.nanmean(points)), np.nanmean(table, axis=0), level)


def _draws(y: NDArray[np.bool_], s: NDArray[np.float64], resampling: Resampling) -> NDArray[np.float64]:
    ranked = Ranked(y, s, resampling.member, resampling.size)
    return np.concatenate([ranked.figures(counts).auroc for counts in resampling.counts()])


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1 or not len(y):
        raise ValueError(f"auroc: labels and scores must both be [N] with N > 0, got {y.shape} and {s.shape}.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"auroc: labels must be 0 or 1, got {np.unique(y)[:5].tolist()}.")
    if np.isnan(s).any():
        raise ValueError(f"auroc: {int(np.isnan(s).sum())} of {len(s)} scores are NaN.")
    return y.astype(bool), s
