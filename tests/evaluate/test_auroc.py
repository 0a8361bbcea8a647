"""The area under the ROC curve against scikit-learn, and its bootstrap against a written-out resampling."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from carzero.evaluate import auroc, auroc_interval, macro_auroc_interval
from carzero.evaluate.bootstrap import Resampling


@pytest.mark.parametrize("distinct", [3, 10_000])
def test_equals_scikit_learn_with_and_without_ties(distinct):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = rng.integers(0, distinct, 300) + labels
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_interval_equals_resampling_patients_one_by_one():
    rng = np.random.default_rng(1)
    patients = np.sort(rng.integers(0, 40, 120))
    labels = rng.integers(0, 2, 120)
    scores = np.round(rng.normal(size=120) + labels, 1)
    weights = np.concatenate(list(Resampling(patients, resamples=200, seed=3).weights()))
    slow = []
    for w in weights.astype(int):
        rows = np.repeat(np.arange(120), w)
        slow.append(roc_auc_score(labels[rows], scores[rows]))
        # a patient's samples come together or not at all
        assert all(len(set(w[patients == p])) == 1 for p in np.unique(patients))
    got = auroc_interval(labels, scores, patients, resamples=200, seed=3)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-12)


def test_resampling_patients_widens_the_interval_of_repeated_images():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)
    scores = rng.normal(size=60) + labels
    repeated = np.repeat(np.arange(60), 10)
    by_image = auroc_interval(labels[repeated], scores[repeated])
    by_patient = auroc_interval(labels[repeated], scores[repeated], repeated)
    assert by_patient.high - by_patient.low > 2 * (by_image.high - by_image.low)


def test_macro_leaves_out_classes_without_positives():
    rng = np.random.default_rng(4)
    labels = np.stack([rng.integers(0, 2, 80), np.zeros(80, int)], axis=1)
    scores = rng.normal(size=(80, 2)) + labels
    got = macro_auroc_interval(labels, scores, resamples=50)
    assert got.value == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]), abs=1e-12)
    assert got.low < got.value < got.high


def test_absent_class_is_nan_and_bad_input_is_named():
    assert np.isnan(auroc([1, 1], [0.1, 0.2]))
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auroc([0, 1], [0.1, float("nan")])
