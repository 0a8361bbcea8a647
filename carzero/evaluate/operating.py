"""What a score says once it is cut at a threshold: sensitivity, specificity, predictive values, F1, MCC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Interval, Resampling, percentile_interval

#: Figures at a threshold, in the order of tables.
FIGURES = ("sensitivity", "specificity", "ppv", "npv", "f1", "mcc")


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen; `Rule.parse` reads it.

    Args:
        kind: ``youden`` (largest sensitivity + specificity), ``f1`` or ``mcc`` (largest), ``sensitivity`` or
            ``specificity`` (the other one largest while this one is at least `value`), ``threshold`` (`value` itself).
        value: of the last three.
    """

    kind: str
    value: float = float("nan")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``youden``, ``f1``, ``mcc``, ``sensitivity=0.9``, ``specificity=0.9`` or ``threshold=0``."""
        kind, _, number = text.partition("=")
        if kind in ("youden", "f1", "mcc") and not number:
            return cls(kind)
        if kind in ("sensitivity", "specificity", "threshold") and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", number):
            value = float(number)
            if kind == "threshold" or 0 < value <= 1:
                return cls(kind, value)
        raise UserError(
            f"An operating point is youden, f1, mcc, sensitivity=0.9, specificity=0.9 or threshold=0, got {text!r}."
        )

    def __str__(self) -> str:
        return self.kind if np.isnan(self.value) else f"{self.kind}={self.value:g}"


def choose_threshold(labels: NDArray[np.bool_], scores: NDArray[np.float64], rule: Rule) -> float:
    """The threshold of one class by a rule; a sample is called positive where its score is at or above it.

    Args:
        labels: bool ``[N]``.
        scores: float ``[N]``.

    Returns:
        one of the scores (the highest of equally good ones); NaN where a class has no positive or no negative.
    """
    if rule.kind == "threshold":
        return rule.value
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    tp = np.cumsum(labels[order])[last].astype(np.float64)
    fp = last + 1 - tp
    f = figures(np.stack([tp, fp, positives - tp, negatives - fp], axis=-1))
    if rule.kind == "youden":
        merit = f["sensitivity"] + f["specificity"]
    elif rule.kind in ("f1", "mcc"):
        merit = f[rule.kind]
    else:
        other = "specificity" if rule.kind == "sensitivity" else "sensitivity"
        merit = np.where(f[rule.kind] >= rule.value, f[other], -1.0)
        if np.nanmax(merit) < 0:
            # no score is specific enough: nothing is called positive
            return float(np.nextafter(ranked[0], np.inf))
    return float(ranked[last][int(np.nanargmax(merit))])


def figures(table: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """All `FIGURES` from counts ``[..., 4]`` of true positives, false positives, false negatives, true negatives.

    Equal to scikit-learn's `recall_score`, `precision_score`, `f1_score` and `matthews_corrcoef`, but NaN where the
    denominator is 0; F1 is 0 where positives exist and none is found.
    """
    tp, fp, fn, tn = np.moveaxis(table, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "mcc": (tp * tn - fp * fn) / (np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)),
        }


def at_prevalence(
    sensitivity: NDArray[np.float64], specificity: NDArray[np.float64], prevalence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positive and negative predictive value where `prevalence` of all have the finding, by Bayes' rule."""
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    cleared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        return true / (true + false), cleared / (cleared + missed)


@dataclass(frozen=True)
class OperatingPoint:
    """One class at one threshold.

    Args:
        threshold: scores at or above it are called positive.
        figures: `FIGURES` with intervals; and ``ppv_at_prevalence``, ``npv_at_prevalence`` where one was stated.
        prevalence: the stated one.
    """

    threshold: float
    figures: dict[str, Interval]
    prevalence: float | None = None


def operating_points(
    labels: NDArray[np.float64],
    scores: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    resampling: Resampling,
    *,
    prevalence: Mapping[int, float] | None = None,
    level: float = 0.95,
) -> list[OperatingPoint]:
    """Figures of each class at its threshold, with intervals over the resamples.

    Args:
        labels: ``[N, C]``, 0, 1 or NaN (ignored).
        scores: ``[N, C]``.
        thresholds: ``[C]``; NaN: the class has none, and no figure.
        resampling: of the N rows.
        prevalence: class number -> stated prevalence.
    """
    known = ~np.isnan(labels)
    called, present = scores >= thresholds, labels == 1
    cells = np.stack([called & present, called & ~present & known, ~called & present, ~called & ~present & known], -1)
    # a class without a threshold calls nothing: 0 of 0
    cells &= ~np.isnan(thresholds)[:, None]
    n_classes = len(thresholds)
    sums = np.zeros((resampling.size, 4 * n_classes))
    np.add.at(sums, resampling.member, cells.reshape(len(labels), -1).astype(np.float64))
    tables = np.concatenate([counts.T @ sums for counts in resampling.counts()]).reshape(-1, n_classes, 4)
    drawn, point = figures(tables), figures(sums.sum(0).reshape(n_classes, 4))
    result = []
    for c in range(n_classes):
        own = {name: percentile_interval(float(point[name][c]), drawn[name][:, c], level) for name in FIGURES}
        stated = (prevalence or {}).get(c)
        if stated is not None:
            values = at_prevalence(point["sensitivity"][c], point["specificity"][c], stated)
            spread = at_prevalence(drawn["sensitivity"][:, c], drawn["specificity"][:, c], stated)
            for name, value, draws in zip(("ppv_at_prevalence", "npv_at_prevalence"), values, spread):
                own[name] = percentile_interval(float(value), draws, level)
        result.append(OperatingPoint(float(thresholds[c]), own, stated))
    return result
