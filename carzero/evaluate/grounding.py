"""Whether maps land on findings: pointing game, IoU and Dice against boxes, with intervals by patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from carzero.evaluate.bootstrap import mean_draws, percentile_interval
from carzero.evaluate.boxes import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Shares of a map's maximum from which on a pixel counts as found.
THRESHOLDS = (0.25, 0.5, 0.75)
#: The last row of `grounding_table`.
MEAN = "mean over findings"


@dataclass(frozen=True)
class MapScore:
    """How one map meets the boxes of its finding.

    Args:
        hit: the map's peak lies inside one of the boxes: the strict pointing game.
        chance: the boxes' share of the image: what a peak anywhere would reach.
        inside: the boxes' share of the map's sum.
        iou, dice: of the pixels at or above each threshold and those of the boxes.
    """

    hit: bool
    chance: float
    inside: float
    iou: tuple[float, ...]
    dice: tuple[float, ...]


def inside(point: tuple[float, float], boxes: Iterable[Box]) -> bool:
    """Whether a point lies in any of the boxes, edges included."""
    return any(x0 <= point[0] <= x1 and y0 <= point[1] <= y1 for x0, y0, x1, y1 in boxes)


def pointing_accuracy(peaks: Sequence[tuple[float, float]], boxes: Sequence[Sequence[Box]]) -> float:
    """Share of maps whose peak lies inside any box of its finding (the pointing game); NaN for no map.

    Args:
        peaks: x, y of N maps.
        boxes: the boxes of each map's finding.
    """
    if len(peaks) != len(boxes):
        raise ValueError(f"pointing_accuracy: one list of boxes per peak, got {len(boxes)} for {len(peaks)} peaks.")
    return float(np.mean([inside(p, b) for p, b in zip(peaks, boxes)])) if peaks else float("nan")


def box_mask(boxes: Iterable[Box], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies in any box: bool ``[height, width]``."""
    mask = np.zeros((height, width), bool)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]
    return mask


def score_map(
    values: NDArray[np.floating],
    boxes: Sequence[Box],
    *,
    peak: tuple[float, float] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> MapScore:
    """Score one map against the boxes of its finding.

    Equivalent to, for each threshold t, with B the pixels of the boxes::

        found = values >= t * values.max()
        iou, dice = (found & B).sum() / (found | B).sum(), 2 * (found & B).sum() / (found.sum() + B.sum())

    Args:
        values: ``[height, width]`` at the image's resolution, not negative; a map of zeros finds nothing.
        boxes: at least one, in pixels of the image.
        peak: x, y of the map's peak; None: the centre of its largest pixel.
        thresholds: shares of the maximum, above 0 and at most 1.

    Raises:
        ValueError: no box, a box without a pixel of the image, or values that are negative or not finite.
    """
    height, width = values.shape
    truth = box_mask(boxes, height, width)
    if not truth.any():
        raise ValueError(f"score_map: the boxes {list(boxes)} hold no pixel of the image of {width} x {height}.")
    if not all(0 < t <= 1 for t in thresholds):
        raise ValueError(f"score_map: thresholds must lie above 0 and at most at 1, got {list(thresholds)}.")
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("score_map: a map must hold finite values of 0 and more.")
    top = values.max()
    if peak is None:
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        peak = float(column) + 0.5, float(row) + 0.5
    iou, dice = [], []
    for threshold in thresholds:
        found = (values >= threshold * top) & (top > 0)
        both, area = int((found & truth).sum()), int(found.sum() + truth.sum())
        iou.append(both / (area - both))
        dice.append(2 * both / area)
    total = values.sum()
    return MapScore(
        hit=top > 0 and inside(peak, boxes),
        chance=float(truth.mean()),
        inside=float(values[truth].sum() / total) if total else 0.0,
        iou=tuple(iou),
        dice=tuple(dice),
    )


def grounding_table(
    findings: Sequence[str],
    scores: Sequence[MapScore],
    patients: Sequence[object] | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Pointing game, IoU and Dice per finding and their mean over findings, with percentile bootstrap intervals.

    Args:
        findings: of the N maps.
        scores: of `score_map`, with these thresholds.
        patients: of the N maps: each resample draws whole patients; None: whole maps.
        thresholds: names of the IoU and Dice columns.
        resamples, level, seed: of the bootstrap. A resample without any map of a finding says nothing of it.

    Returns:
        a row a finding and one for `MEAN`: finding, n, patients, chance, inside, pointing, ``iou 0.5``, ``dice 0.5``,
        ..., each of the last followed by ``<figure> low`` and ``<figure> high``; an empty table for no map.
    """
    if not len(findings) == len(scores) == len(scores if patients is None else patients):
        raise ValueError(
            f"grounding_table: findings, scores and patients must be as many, got {len(findings)}, {len(scores)} and "
            f"{'None' if patients is None else len(patients)}."
        )
    figures = ["pointing", *(f"{kind} {t:g}" for kind in ("iou", "dice") for t in thresholds)]
    columns = [
        "finding",
        "n",
        "patients",
        "chance",
        "inside",
        *(f + end for f in figures for end in ("", " low", " high")),
    ]
    if not scores:
        return pd.DataFrame(columns=columns)
    group = np.arange(len(scores)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    values = np.array([[s.hit, *s.iou, *s.dice, s.chance, s.inside] for s in scores], np.float64)
    member = np.asarray(findings)
    names = list(dict.fromkeys(findings))
    # [N, findings, figures], NaN where a map is of another finding
    apart = np.where((member[:, None] == names)[..., None], values[:, None], np.nan)
    draws = mean_draws(apart.reshape(len(scores), -1), group, resamples=resamples, seed=seed)
    draws = draws.reshape(-1, len(names), values.shape[1])
    rows = []
    for number, name in enumerate(names):
        mine = member == name
        size = int(mine.sum()), len(np.unique(group[mine]))
        rows.append(_row(columns, (name, *size), values[mine].mean(0), draws[:, number], level))
    # a resample holds a map, so a finding
    points = np.mean([values[member == name].mean(0) for name in names], 0)
    size = len(scores), len(np.unique(group))
    rows.append(_row(columns, (MEAN, *size), points, np.nanmean(draws, 1), level))
    return pd.DataFrame(rows)


def _row(
    columns: list[str], head: tuple, points: NDArray[np.float64], draws: NDArray[np.float64], level: float
) -> dict[str, object]:
    cells = [*head, *map(float, points[-2:])]
    for point, drawn in zip(points[:-2], draws[:, :-2].T):
        interval = percentile_interval(float(point), drawn, level)
        cells += [interval.value, interval.low, interval.high]
    return dict(zip(columns, cells))
