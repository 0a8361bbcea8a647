"""All figures of one set of scores, with intervals that resample patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Interval, Resampling, mean_interval, percentile_interval
from carzero.evaluate.operating import OperatingPoint, operating_points
from carzero.evaluate.ranking import Figures, Ranked, draws, points
from carzero.evaluate.subgroups import Split, split_by
from carzero.evaluate.tables import Sample
from carzero.evaluate.units import resampling_units

NAMES = ("auroc", "auprc_trapezoid", "average_precision")


@dataclass(frozen=True)
class ClassFigures:
    """One class.

    Args:
        positives, negatives, ignored: how many rows have it, lack it, or have no label.
        auroc, auprc_trapezoid, average_precision: NaN where they are not defined.
        operating: figures at a threshold, if one was asked for.
    """

    positives: int
    negatives: int
    ignored: int
    auroc: Interval
    auprc_trapezoid: Interval
    average_precision: Interval
    operating: OperatingPoint | None = None


@dataclass(frozen=True)
class Group:
    """Some of the classes together: means over those of them that are defined."""

    classes: tuple[str, ...]
    auroc: Interval
    auprc_trapezoid: Interval
    average_precision: Interval


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; see `evaluate`.

    Args:
        n_rows: images, or studies or patients if those are the unit.
        n_patients: None where no patient is named.
        drawn: what the bootstrap drew, how many of them, and why: (unit, count, reason).
        overall: ``macro_auroc`` and so on: macro, micro and weighted of each of `NAMES`.
        groups: head, medium, tail, and ``rarest``.
        accuracy: share of images whose highest score is their class, where each has exactly one; else None.
        splits: by column: figures per group of images, and the gap.
    """

    per_class: dict[str, ClassFigures]
    overall: dict[str, Interval]
    groups: dict[str, Group]
    n_rows: int
    n_patients: int | None
    drawn: tuple[str, int, str]
    resamples: int
    level: float
    seed: int
    accuracy: Interval | None = None
    splits: dict[str, Split] = field(default_factory=dict)

    @property
    def undefined(self) -> list[str]:
        """Classes that have no AUROC here: without a positive or without a negative."""
        return [name for name, f in self.per_class.items() if np.isnan(f.auroc.value)]


def evaluate(
    sample: Sample,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    rarest: int = 100,
    by: Sequence[str] = (),
    thresholds: NDArray[np.float64] | None = None,
    prevalence: Mapping[int, float] | None = None,
) -> Evaluation:
    """Measure scores against labels.

    Per class and as macro, micro and weighted mean: AUROC, the trapezoid under the precision-recall curve (the
    published AUPRC) and average precision, equal to scikit-learn's where that defines them. A class without positives
    or without negatives keeps its row and is left out of means. Every figure has a percentile interval over the same
    resamples of whole patients; of studies or images where no patient is named.

    Args:
        sample: rows with labels (NaN is ignored) and scores.
        resamples, level, seed: of the bootstrap.
        rarest: classes of the ``rarest`` group, by the number of positives.
        by: columns of `sample.columns` whose groups are measured apart.
        thresholds, prevalence: of `operating_points`, which is left out without thresholds.
    """
    if not len(sample.images) or not sample.classes:
        raise UserError("evaluate: there is no image or no class to measure.")
    units, unit, reason = resampling_units(sample)
    resampling = Resampling(units, resamples=resamples, seed=seed)
    known, present = ~np.isnan(sample.labels), sample.labels == 1
    columns = [
        Ranked(present[rows, c], sample.scores[rows, c], resampling.member[rows], resampling.size)
        for c, rows in enumerate(known.T)
    ]
    row, column = np.nonzero(known)
    everything = Ranked(present[row, column], sample.scores[row, column], resampling.member[row], resampling.size)
    splits = [split_by(sample, name, resampling) for name in by]
    ranked = [*columns, everything, *(r for s in splits for r in s.ranked)]
    point, drawn = points(ranked, resampling.size), draws(ranked, resampling)

    n = len(sample.classes)
    own = [[percentile_interval(point[f][c], drawn[f][:, c], level) for f in range(3)] for c in range(n)]
    cut: Sequence[OperatingPoint | None] = [None] * n
    if thresholds is not None:
        cut = operating_points(sample.labels, sample.scores, thresholds, resampling, prevalence=prevalence, level=level)
    per_class = {
        name: ClassFigures(
            int(present[:, c].sum()), int((known & ~present)[:, c].sum()), int((~known[:, c]).sum()),
            auroc=own[c][0], auprc_trapezoid=own[c][1], average_precision=own[c][2], operating=cut[c],
        )
        for c, name in enumerate(sample.classes)
    }  # fmt: skip
    overall: dict[str, Interval] = {}
    for f, figure in enumerate(NAMES):
        macro = _mean(point[f][:n], drawn[f][:, :n], level)
        micro = percentile_interval(point[f][n], drawn[f][:, n], level)
        weighted = _mean(point[f][:n], drawn[f][:, :n], level, point.positives[:n], drawn.positives[:, :n])
        overall |= {f"macro_{figure}": macro, f"micro_{figure}": micro, f"weighted_{figure}": weighted}
    start, found = n + 1, {}
    for name, split in zip(by, splits):
        stop = start + len(split.ranked)
        found[name] = split.measured(point.auroc[start:stop], drawn.auroc[:, start:stop], level)
        start = stop
    groups = {
        name: Group(
            tuple(sample.classes[c] for c in members),
            *(_mean(point[f][members], drawn[f][:, members], level) for f in range(3)),
        )
        for name, members in frequency_groups(present.sum(0), rarest).items()
    }
    return Evaluation(
        per_class, overall, groups, len(sample.images),
        None if sample.patient is None else len(np.unique(sample.patient)), (unit, resampling.size, reason),
        resamples, level, seed, _accuracy(sample, known, present, units, resamples, level, seed), found,
    )  # fmt: skip


def frequency_groups(positives: NDArray[np.integer], rarest: int) -> dict[str, list[int]]:
    """Classes by how many positives they have, as CARZero's published evaluation divides them.

    Args:
        positives: ``[C]``.
        rarest: classes of the last group; of equally rare ones the first.

    Returns:
        ``head``: above the 65th percentile of the counts; ``tail``: 10 or fewer; ``medium``: the others; ``rarest``.
        As there, a class above the percentile with 10 or fewer positives is in head and tail.
    """
    head = np.percentile(positives, 65)
    return {
        "head": np.flatnonzero(positives > head).tolist(),
        "medium": np.flatnonzero((positives <= head) & (positives > 10)).tolist(),
        "tail": np.flatnonzero(positives <= 10).tolist(),
        "rarest": np.argsort(positives, kind="stable")[:rarest].tolist(),
    }


def _mean(
    point: NDArray[np.float64], drawn: NDArray[np.float64], level: float,
    weight: NDArray[np.float64] | None = None, weights: NDArray[np.float64] | None = None,
) -> Interval:  # fmt: skip
    """Mean over the classes that are defined, in each resample over those defined there."""

    def mean(values: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
        by = np.where(np.isnan(values), 0.0, by)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.where(np.isnan(values), 0.0, values) * by).sum(-1) / by.sum(-1)

    weight = np.ones_like(point) if weight is None else weight
    weights = np.ones_like(drawn) if weights is None else weights
    return percentile_interval(float(mean(point, weight)), mean(drawn, weights), level)


def _accuracy(
    sample: Sample, known: NDArray[np.bool_], present: NDArray[np.bool_], units: NDArray, resamples: int,
    level: float, seed: int,
) -> Interval | None:  # fmt: skip
    if len(sample.classes) < 2 or not known.all() or not (present.sum(1) == 1).all():
        return None
    right = sample.scores.argmax(1) == present.argmax(1)
    return mean_interval(right.astype(float), units, resamples=resamples, level=level, seed=seed)


__all__ = ["ClassFigures", "Evaluation", "Figures", "Group", "evaluate", "frequency_groups"]
