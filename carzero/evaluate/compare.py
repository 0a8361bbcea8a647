"""Whether one model's AUROC differs from another's on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Interval, Resampling, percentile_interval
from carzero.evaluate.ranking import Ranked, draws, points
from carzero.evaluate.tables import Sample
from carzero.evaluate.units import resampling_units

Correction = Literal["holm", "fdr_bh", "bonferroni"]


@dataclass(frozen=True)
class Difference:
    """AUROC of model A less that of model B.

    Args:
        interval: the difference with its bootstrap interval.
        p_bootstrap: two-sided, from the share of resamples on the other side of 0.
        p_delong: two-sided by `delong`; NaN for a mean over classes.
        p_bootstrap_corrected, p_delong_corrected: over all classes; NaN for a mean over classes.
    """

    interval: Interval
    p_bootstrap: float
    p_delong: float = float("nan")
    p_bootstrap_corrected: float = float("nan")
    p_delong_corrected: float = float("nan")


def compare(
    ours: Sample, theirs: Sample, *, resamples: int = 1000, seed: int = 0, level: float = 0.95,
    correction: Correction = "holm",
) -> dict[str, Difference]:  # fmt: skip
    """Paired differences per class, and of the macro mean under the key ``macro``.

    Args:
        ours, theirs: the same images, labels and classes, other scores.
        resamples, seed, level: of the bootstrap, which draws both models' scores together, by patient where known.
        correction: of the classes' p values, as `statsmodels.stats.multitest.multipletests` names it.
    """
    if ours.images != theirs.images or ours.classes != theirs.classes:
        raise UserError("compare: both models must have scored the same images and classes.")
    resampling = Resampling(resampling_units(ours)[0], resamples=resamples, seed=seed)
    known = ~np.isnan(ours.labels)
    ranked = [
        Ranked(s.labels[rows, c] == 1, s.scores[rows, c], resampling.member[rows], resampling.size)
        for s in (ours, theirs)
        for c, rows in enumerate(known.T)
    ]
    n = len(ours.classes)
    point, drawn = points(ranked, resampling.size).auroc, draws(ranked, resampling).auroc
    point, drawn = point[:n] - point[n:], drawn[:, :n] - drawn[:, n:]
    p_boot = np.array([_bootstrap_p(drawn[:, c]) for c in range(n)])
    p_boot[np.isnan(point)] = np.nan
    p_delong = np.array([
        delong(ours.labels[r, c] == 1, ours.scores[r, c], theirs.scores[r, c], resampling.member[r])[1]
        for c, r in enumerate(known.T)
    ])  # fmt: skip
    corrected = [_corrected(p, correction) for p in (p_boot, p_delong)]
    result = {
        name: Difference(
            percentile_interval(float(point[c]), drawn[:, c], level),
            *(float(p[c]) for p in (p_boot, p_delong, *corrected)),
        )
        for c, name in enumerate(ours.classes)
    }
    defined = ~np.isnan(point)
    if defined.any():
        mean = np.array([np.nanmean(row) if not np.isnan(row).all() else np.nan for row in drawn[:, defined]])
        interval = percentile_interval(float(point[defined].mean()), mean, level)
        result["macro"] = Difference(interval, _bootstrap_p(mean))
    return result


def delong(
    labels: NDArray[np.bool_], first: NDArray[np.float64], second: NDArray[np.float64], units: NDArray | None = None
) -> tuple[float, float]:
    """Difference of two AUROCs on the same samples, and its two-sided p value (normal approximation).

    Args:
        labels: bool ``[N]``.
        first, second: scores ``[N]`` of the two models.
        units: ``[N]`` patients; several samples of one count together (Obuchowski, Biometrics 1997), which for a
            sample each is DeLong's test (DeLong et al., Biometrics 1988).

    Returns:
        difference and p; p is NaN with fewer than two units that have a positive, or a negative, and 1 where the two
        rank alike.
    """
    m, n = int(labels.sum()), int((~labels).sum())
    if not m or not n:
        return float("nan"), float("nan")
    member = np.arange(len(labels)) if units is None else np.unique(units, return_inverse=True)[1].reshape(-1)
    size = int(member.max()) + 1
    areas, sums = [], []
    for scores in (first, second):
        pos, neg = scores[labels], scores[~labels]
        # placements by midranks: the share of the other class that each sample beats, ties counting half
        ranks = stats.rankdata(np.r_[pos, neg])
        v10 = (ranks[:m] - stats.rankdata(pos)) / n
        v01 = 1 - (ranks[m:] - stats.rankdata(neg)) / m
        area = v10.mean()
        areas.append(area)
        sums.append((
            np.bincount(member[labels], v10 - area, size), np.bincount(member[~labels], v01 - area, size),
        ))  # fmt: skip
    with_positive, with_negative = (len(np.unique(member[rows])) for rows in (labels, ~labels))
    if with_positive < 2 or with_negative < 2:
        return float(areas[0] - areas[1]), float("nan")
    x, y = sums[0][0] - sums[1][0], sums[0][1] - sums[1][1]
    variance = with_positive / (with_positive - 1) * (x @ x) / m**2
    variance += with_negative / (with_negative - 1) * (y @ y) / n**2
    variance += 2 * size / (size - 1) * (x @ y) / (m * n)
    difference = float(areas[0] - areas[1])
    if variance <= 1e-30:
        return difference, 1.0 if abs(difference) < 1e-12 else 0.0
    return difference, float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _bootstrap_p(drawn: NDArray[np.float64]) -> float:
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan")
    # the sample itself counts as one resample, so that p is never 0
    below, above = (1 + (known <= 0).sum()) / (1 + len(known)), (1 + (known >= 0).sum()) / (1 + len(known))
    return float(min(1.0, 2 * min(below, above)))


def _corrected(p: NDArray[np.float64], correction: Correction) -> NDArray[np.float64]:
    result = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        result[known] = multipletests(p[known], method=correction)[1]
    return result
