"""Known weaknesses of image-text models as figures: negation, normality, wording, sides.

Each check returns ``{"rows": [{"name", "interval": [value, low, high], "reads"}], "per_class": ...}``, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from carzero.evaluate.bootstrap import Interval, mean_interval
from carzero.evaluate.evaluation import Evaluation, evaluate
from carzero.evaluate.tables import Sample
from carzero.evaluate.units import resampling_units


def negation(sample: Sample, denied: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How a prompt compares with its denial.

    Args:
        sample: scores of "There is X".
        denied: ``[N, C]`` scores of "There is no X".
    """
    absence = _again(sample, denied, 1 - sample.labels, resamples, seed)
    difference = _again(sample, sample.scores - denied, sample.labels, resamples, seed)
    right = np.where(sample.labels == 1, sample.scores - denied, denied - sample.scores)
    # a tie is half right; images with and without the finding count alike
    share = np.where(np.isnan(sample.labels), np.nan, (np.sign(right) + 1) / 2)
    halves = np.concatenate([np.where(sample.labels == value, share, np.nan) for value in (0, 1)], axis=1)
    twins = mean_interval(halves, resampling_units(sample)[0], resamples=resamples, seed=seed)
    return {
        "rows": [
            _row("AUROC of the denial for absence", absence.overall["macro_auroc"],
                 "0.5 is chance; below it the denial is read as the finding"),
            _row("AUROC of prompt less denial", difference.overall["macro_auroc"], "for presence; 0.5 is chance"),
            _row("the true one of the two scores higher", twins,
                 "share of images, with and without each finding alike; 0.5 is chance"),
        ],
        "per_class": {
            name: {"absence": _plain(absence.per_class[name].auroc), "difference": _plain(d.auroc)}
            for name, d in difference.per_class.items()
        },
    }  # fmt: skip


def normality(sample: Sample, normal: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How images without any finding are told from the others.

    Args:
        sample: scores of findings; an image is normal where none of its known labels is positive.
        normal: ``[N]`` score of a prompt that says so.
    """
    abnormal = (sample.labels == 1).any(1).astype(float)[:, None]
    highest = sample.scores.max(1)
    # logits of different prompts do not compare: each is put on the scale of its own spread first
    spread = sample.scores.std(0)
    standard = ((sample.scores - sample.scores.mean(0)) / np.where(spread > 0, spread, 1)).max(1)

    def measured(scores: NDArray[np.float64]) -> Interval:
        one = Sample(sample.images, ("abnormal",), abnormal, scores[:, None], sample.patient, sample.study)
        return evaluate(one, resamples=resamples, seed=seed).per_class["abnormal"].auroc

    return {
        "rows": [
            _row("AUROC of the normal prompt", measured(-normal), "for images without any finding; 0.5 is chance"),
            _row("AUROC of the highest finding", measured(highest), "for images with a finding; raw logits"),
            _row("AUROC of the highest finding, standardised", measured(standard), "each finding by its own spread"),
        ],
        "normal_images": int((abnormal == 0).sum()),
        "images": len(abnormal),
    }


def wording(sample: Sample, worded: Mapping[str, NDArray[np.float64]], *, resamples: int = 1000, seed: int = 0) -> dict:
    """How much figures depend on how a finding is asked for.

    Args:
        sample: images and labels.
        worded: template -> scores ``[N, C]``, at least two.
    """
    each = {t: _again(sample, scores, sample.labels, resamples, seed) for t, scores in worded.items()}
    mean = _again(sample, np.mean(list(worded.values()), axis=0), sample.labels, resamples, seed)
    per_class = {}
    for c, name in enumerate(sample.classes):
        values = [e.per_class[name].auroc.value for e in each.values()]
        table = np.stack([scores[:, c] for scores in worded.values()])
        pairs = np.triu_indices(len(table), 1)
        agreement = [_spearman(table[i], table[j]) for i, j in zip(*pairs)]
        per_class[name] = {
            "lowest": float(np.min(values)), "highest": float(np.max(values)),
            "spread": float(np.max(values) - np.min(values)), "rank_agreement": float(np.mean(agreement)),
        }  # fmt: skip
    spreads = [f["spread"] for f in per_class.values() if not np.isnan(f["spread"])]
    agreements = [f["rank_agreement"] for f in per_class.values() if not np.isnan(f["rank_agreement"])]
    rows = [_row(f"macro AUROC of “{t}”", e.overall["macro_auroc"], "the same findings") for t, e in each.items()]
    rows += [
        _row("macro AUROC of the wordings' mean", mean.overall["macro_auroc"], "all wordings together"),
        _row("spread of AUROC over wordings", _point(spreads), "highest less lowest, mean over classes; 0 is best"),
        _row(
            "rank agreement between wordings", _point(agreements), "Spearman's, mean over pairs and classes; 1 is best"
        ),
    ]
    return {"rows": rows, "per_class": {n: {k: _null(v) for k, v in f.items()} for n, f in per_class.items()}}


def laterality(
    left: Sample, right: Sample, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Whether the side in a prompt is read, on the images that have a finding on one side only.

    Args:
        left, right: labels of each finding on that side, and scores of the prompt that names it; the same images and
            classes.
    """
    one_side = left.labels + right.labels == 1
    labels = np.where(one_side, left.labels, np.nan)
    difference = _again(left, left.scores - right.scores, labels, resamples, seed)
    # a score of a side among the images of both sides: images with the finding on the other are the hard negatives
    alone = [
        _again(side, side.scores, np.where(one_side, side.labels, np.nan), resamples, seed) for side in (left, right)
    ]
    return {
        "rows": [
            _row("AUROC of left less right prompt", difference.overall["macro_auroc"],
                 "for the left, among images with the finding on one side; 0.5 knows no sides"),
            _row("AUROC of the left prompt", alone[0].overall["macro_auroc"], "left against right, as above"),
            _row("AUROC of the right prompt", alone[1].overall["macro_auroc"], "right against left, as above"),
        ],
        "per_class": {
            name: {"left": f.positives, "right": f.negatives, "difference": _plain(f.auroc)}
            for name, f in difference.per_class.items()
        },
    }  # fmt: skip


def _again(
    sample: Sample, scores: NDArray[np.float64], labels: NDArray[np.float64], resamples: int, seed: int
) -> Evaluation:
    other = Sample(sample.images, sample.classes, labels, scores, sample.patient, sample.study)
    return evaluate(other, resamples=resamples, seed=seed)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else float("nan")


def _point(values: list[float]) -> Interval:
    return Interval(float(np.mean(values)) if values else float("nan"), float("nan"), float("nan"))


def _row(name: str, interval: Interval, reads: str) -> dict[str, Any]:
    return {"name": name, "interval": _plain(interval), "reads": reads}


def _plain(interval: Interval) -> list[float | None]:
    return [_null(v) for v in (interval.value, interval.low, interval.high)]


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
