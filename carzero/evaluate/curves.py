"""ROC and precision-recall curves, and the share of positives by score, as points of small drawings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Side of a drawing, and most points of a curve: more could not be told apart in it.
SIDE, POINTS = 100, 160


@dataclass(frozen=True)
class Curves:
    """Drawings of one class in a square of `SIDE`, (0, 0) at the top left, as SVG point lists.

    Args:
        roc: true against false positive rate.
        pr: precision against recall.
        tenths: for each tenth of the samples by score, lowest first: share of positives, and how many samples.
        prevalence: share of positives.
    """

    roc: str
    pr: str
    tenths: list[tuple[float, int]]
    prevalence: float


def draw_curves(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> Curves | None:
    """Drawings of one class; None where it lacks positives or negatives.

    Args:
        labels: ``[N]``, 0, 1 or NaN (left out).
        scores: ``[N]``.
    """
    known = ~np.isnan(labels)
    y, s = labels[known] == 1, scores[known]
    if not y.any() or y.all():
        return None
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.r_[s[order][1:] != s[order][:-1], True])
    tp, called = np.cumsum(y[order])[last], last + 1
    recall, false = tp / y.sum(), (called - tp) / (~y).sum()
    # tied scores stay in one tenth, so that chance order says nothing
    rank = np.searchsorted(np.sort(s), s, side="left")
    tenth = np.minimum(10 * rank // len(s), 9)
    sizes = np.bincount(tenth, minlength=10)
    shares = np.bincount(tenth, y, minlength=10)
    return Curves(
        _line(np.r_[0, false], np.r_[0, recall]),
        _line(np.r_[0, recall], np.r_[1, tp / called]),
        [(float(a / n) if n else 0.0, int(n)) for a, n in zip(shares, sizes)],
        float(y.mean()),
    )


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    # points evenly along the curve, its ends included
    path = np.r_[0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))]
    kept = np.unique(np.searchsorted(path, np.linspace(0, path[-1], POINTS)).clip(0, len(x) - 1))
    kept = np.unique(np.r_[0, kept, len(x) - 1])
    return " ".join(f"{SIDE * a:.1f},{SIDE * (1 - b):.1f}" for a, b in zip(x[kept], y[kept]))
