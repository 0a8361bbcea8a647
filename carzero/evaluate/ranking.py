"""Figures of a ranking (AUROC, AUPRC, average precision) for many weightings of its samples at once.

All three change only at the distinct scores that a positive has, so a class is reduced, once, to the samples at and
between those steps. A resample then costs one sparse product: each sample is read once, whatever the figure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from carzero.evaluate.bootstrap import Resampling


class Figures(NamedTuple):
    """Figures of B weightings, float64 ``[B]`` (``[B, K]`` for K classes); NaN where they are not defined.

    Args:
        auroc: `sklearn.metrics.roc_auc_score`; needs a positive and a negative.
        auprc: trapezoid under `sklearn.metrics.precision_recall_curve`; needs a positive.
        average_precision: `sklearn.metrics.average_precision_score`; needs a positive.
        positives: weight of all positives.
    """

    auroc: NDArray[np.float64]
    auprc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    positives: NDArray[np.float64]


class Ranked:
    """The samples of one class in the order of their scores.

    Args:
        labels: bool ``[n]``.
        scores: float ``[n]`` without NaN, higher for positives.
        member: int ``[n]``, the unit of each sample.
        units: G, how many units there are (of this class and of others).
    """

    def __init__(self, labels: NDArray[np.bool_], scores: NDArray, member: NDArray[np.integer], units: int) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked, positive, who = scores[order], labels[order], member[order].astype(np.int32)
        n = len(ranked)
        first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if n else np.empty(0, np.intp)
        last = np.r_[first[1:], n]
        before = np.r_[0, np.cumsum(positive)]
        steps = before[last] > before[first]
        first, last = first[steps], last[steps]
        # rows: samples above step 1, at step 1, between steps 1 and 2, at step 2, ..., below the last step
        bounds = np.r_[0, np.stack([first, last], 1).ravel(), n]
        self._samples = _sums(bounds, who, units)
        at = np.flatnonzero(positive)
        self._positives = _sums(np.r_[before[first], len(at)], who[at], units)

    def figures(self, counts: NDArray[np.int32]) -> Figures:
        """Figures of B resamples from how often each unit occurs in each, int32 ``[G, B]``."""
        parts, gained = self._samples @ counts, self._positives @ counts
        # down to each step, its ties included: all samples, positives; in 32 bits, as no sum passes the total weight
        reached = np.cumsum(parts, axis=0, dtype=np.int32)
        hit = np.cumsum(gained, axis=0, dtype=np.int32)
        above, upto = reached[:-1:2], reached[1::2]
        earlier = hit - gained
        positives = gained.sum(0, dtype=np.float64)
        negatives = reached[-1] - positives
        with np.errstate(invalid="ignore", divide="ignore"):
            # a positive loses against the negatives above it, and half of those at its score
            lost = np.einsum("kb,kb->b", gained, (upto - hit) + (above - earlier), dtype=np.float64)
            auroc = 1 - lost / (2 * positives * negatives)
            # where no sample was drawn down to a step, no positive was gained there
            average = np.einsum("kb,kb->b", gained, hit / np.maximum(upto, 1)) / positives
            # precision just before the step; the curve starts at 1 for no recall
            earlier += above == 0
            before = np.einsum("kb,kb->b", gained, earlier / np.maximum(above, 1)) / positives
            trapezoid = 0.5 * (average + before)
        return Figures(auroc, trapezoid, average, positives)


def _sums(bounds: NDArray, columns: NDArray[np.int32], units: int) -> csr_array:
    """Matrix whose product with counts ``[G, B]`` sums those of each run ``bounds[i]:bounds[i + 1]`` of samples."""
    return csr_array(
        (np.ones(len(columns), np.int32), columns, bounds.astype(np.int32)), shape=(len(bounds) - 1, units)
    )


def draws(ranked: Sequence[Ranked], resampling: Resampling, workers: int | None = None) -> Figures:
    """Figures of several classes over the same resamples, each float64 ``[R, K]``.

    Args:
        ranked: K classes (or parts of them) whose `member` and `units` are those of the resampling.
        resampling: what is drawn.
        workers: threads; None: one a core, at most 8. They do not change a bit.
    """
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)

    def block(counts: NDArray[np.int32]) -> list[NDArray[np.float64]]:
        each = [one.figures(counts) for one in ranked]
        return [np.stack(values, axis=1) for values in zip(*each)]

    with ThreadPoolExecutor(workers) as pool:
        blocks = list(pool.map(block, resampling.counts()))
    return Figures(*(np.concatenate(parts) for parts in zip(*blocks)))


def points(ranked: Sequence[Ranked], units: int) -> Figures:
    """Figures of several classes on the samples as they are, each float64 ``[K]``."""
    each = [one.figures(np.ones((units, 1), np.int32)) for one in ranked]
    return Figures(*(np.concatenate(values) for values in zip(*each)))
