"""Figures of groups of images (by sex, age, view or any column), and how far the worst is from the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Interval, Resampling, percentile_interval
from carzero.evaluate.ranking import Ranked
from carzero.evaluate.tables import Sample
from carzero.evaluate.units import UNKNOWN, group_names

#: Groups with fewer rows are shown, but stay out of the gap: their own error would be all of it.
SMALLEST = 20


@dataclass(frozen=True)
class GroupFigures:
    """One group of images.

    Args:
        rows: how many.
        positives: per class.
        macro_auroc: mean over the split's common classes.
        auroc: per class; NaN where the group lacks positives or negatives.
        in_gap: whether the gap considers it.
    """

    rows: int
    positives: dict[str, int]
    macro_auroc: Interval
    auroc: dict[str, Interval]
    in_gap: bool


@dataclass(frozen=True)
class Split:
    """The groups of one column.

    Args:
        classes: those with positives and negatives in every group of the gap; its means are over them, so that groups
            differ by how they are scored and not by which findings they have.
        groups: figures by name.
        gap: best less worst `macro_auroc` of the groups in the gap; NaN for fewer than two.
        best, worst: which they are.
    """

    classes: tuple[str, ...]
    groups: dict[str, GroupFigures]
    gap: Interval
    best: str | None
    worst: str | None


@dataclass(frozen=True)
class PendingSplit:
    """A split whose classes are ranked, group by group, and not yet measured."""

    names: list[str]
    rows: list[int]
    positives: NDArray[np.integer]
    classes: tuple[str, ...]
    ranked: list[Ranked]

    def measured(self, point: NDArray[np.float64], drawn: NDArray[np.float64], level: float) -> Split:
        """Figures from the AUROC of each of `ranked`, ``[K]`` and ``[R, K]``."""
        shape = (len(self.names), len(self.classes))
        point, drawn = point.reshape(shape), drawn.reshape(-1, *shape)
        usable = np.array([
            rows >= SMALLEST and name != UNKNOWN and not np.isnan(p).all()
            for rows, name, p in zip(self.rows, self.names, point)
        ])  # fmt: skip
        common = ~np.isnan(point[usable]).any(0) if usable.any() else np.zeros(shape[1], bool)
        with np.errstate(invalid="ignore"):
            means = np.where(common, np.nan_to_num(point), 0).sum(1) / common.sum()
            # a resample may leave a rare class without positives in a group: its mean is over the others
            there = common & ~np.isnan(drawn)
            spread = np.where(there, drawn, 0).sum(2) / there.sum(2)
        means[np.isnan(point[:, common]).any(1)] = np.nan
        groups = {
            name: GroupFigures(
                self.rows[g],
                dict(zip(self.classes, self.positives[g].tolist())),
                percentile_interval(float(means[g]), spread[:, g], level),
                {c: percentile_interval(float(point[g, i]), drawn[:, g, i], level) for i, c in enumerate(self.classes)},
                bool(usable[g]),
            )
            for g, name in enumerate(self.names)
        }
        chosen = [c for c, kept in zip(self.classes, common) if kept]
        if usable.sum() < 2 or not chosen:
            return Split(tuple(chosen), groups, Interval(float("nan"), float("nan"), float("nan")), None, None)
        among = np.where(usable, means, np.nan)
        best, worst = int(np.nanargmax(among)), int(np.nanargmin(among))
        # of the two groups as found: a maximum over groups in each resample would grow with their number
        gap = percentile_interval(float(means[best] - means[worst]), spread[:, best] - spread[:, worst], level)
        return Split(tuple(chosen), groups, gap, self.names[best], self.names[worst])


def split_by(sample: Sample, column: str, resampling: Resampling) -> PendingSplit:
    """Rank every class within every group of a column.

    Raises:
        UserError: there is no such column, or it has a single value.
    """
    if column not in sample.columns.columns:
        raise UserError(f"There is no column {column!r} to divide images by: {', '.join(sample.columns.columns)}.")
    given = group_names(sample, column)
    names = sorted(set(given) - {UNKNOWN}, key=_in_order) + [UNKNOWN] * (UNKNOWN in given)
    groups = np.array(given)
    if len(names) < 2:
        raise UserError(f"The column {column!r} has the one value {names[0]!r}: there is nothing to compare.")
    if len(names) > 50:
        raise UserError(f"The column {column!r} has {len(names)} values: divide by a column of at most 50.")
    ranked, rows, positives = [], [], []
    for name in names:
        inside = groups == name
        rows.append(int(inside.sum()))
        positives.append((sample.labels[inside] == 1).sum(0))
        for c in range(len(sample.classes)):
            at = inside & ~np.isnan(sample.labels[:, c])
            ranked.append(
                Ranked(sample.labels[at, c] == 1, sample.scores[at, c], resampling.member[at], resampling.size)
            )
    return PendingSplit(names, rows, np.array(positives), sample.classes, ranked)


def _in_order(name: str) -> tuple[int, float, str]:
    """Bands of numbers by their number, names by the alphabet."""
    first = name.removeprefix(">= ").removeprefix("< ").split(" ")[0]
    try:
        return (0 if name.startswith("< ") else 1, float(first), name)
    except ValueError:
        return (2, 0.0, name)
