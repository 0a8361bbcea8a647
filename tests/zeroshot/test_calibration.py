"""Calibrations against scipy and scikit-learn; their error is that of patients not fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import brier_score_loss

from carzero.errors import UserError
from carzero.zeroshot.calibration import Calibration, calibration_error, fit_calibration


def drawn(n=400, seed=0, slope=1.7, offset=-0.6):
    rng = np.random.default_rng(seed)
    scores = rng.normal(3, 2, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(slope * (scores - 3) + offset)))).astype(float)
    return scores, labels


def test_platt_is_the_minimum_of_its_likelihood():
    scores, labels = drawn()
    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def loss(w):
        z = w[0] + w[1] * scores
        return (np.logaddexp(0, z) - target * z).sum()

    offset, slope = minimize(loss, [0, 0], method="BFGS", options={"gtol": 1e-10}).x
    fitted = fit_calibration(scores, labels)
    assert fitted.knots[0] == pytest.approx((offset, slope), rel=1e-4)
    assert slope == pytest.approx(1.7, abs=0.35)
    np.testing.assert_allclose(fitted(scores), 1 / (1 + np.exp(-(offset + slope * scores))), atol=1e-5)
    # far out there is neither overflow nor NaN
    assert fitted([-1e6, 1e6]).tolist() == [0.0, 1.0]


def test_isotonic_is_the_nearest_rising_curve():
    scores, labels = drawn()
    fitted = fit_calibration(scores, labels, method="isotonic")
    order = np.argsort(scores)
    np.testing.assert_allclose(fitted(scores[order]), isotonic_regression(labels[order]), atol=1e-9)
    assert fitted([-99, 99]).tolist() == [fitted.knots[0][1], fitted.knots[-1][1]]
    assert (np.diff(fitted(np.linspace(-5, 10, 500))) >= 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_error_is_measured_on_other_patients(method):
    # every patient has its own label and eight images of one score: a fit on the patient itself would be near perfect
    rng = np.random.default_rng(1)
    score = np.sort(rng.normal(size=40)).repeat(8)
    label = rng.integers(0, 2, 40).repeat(8).astype(float)
    patient = np.arange(40).repeat(8)
    together = fit_calibration(score, label, patient, method=method)
    assert (together.n, together.positives, together.units) == (320, int(label.sum()), 40)
    assert together.brier > 0.22, "labels are drawn without regard to the score"
    assert together.brier_constant == pytest.approx(brier_score_loss(label, np.full(320, label.mean())))
    if method == "isotonic":
        assert fit_calibration(score, label, method=method).brier < together.brier - 0.01, "leaks between images"


def test_a_good_score_has_a_small_error():
    scores, labels = drawn(6000)
    for method in ("platt", "isotonic"):
        fitted = fit_calibration(scores, labels, method=method)
        truth = 1 / (1 + np.exp(-(1.7 * (scores - 3) - 0.6)))
        assert np.abs(fitted(scores) - truth).mean() < 0.03
        assert fitted.error < 0.03
        assert fitted.brier < 0.7 * fitted.brier_constant


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 1000), levels=st.integers(1, 5))
def test_calibration_error_by_the_definition(n, seed, levels):
    rng = np.random.default_rng(seed)
    p, y = rng.integers(0, levels + 1, n) / levels, rng.integers(0, 2, n)
    order, total, start = np.argsort(p, kind="stable"), 0.0, 0
    bins = min(10, n)
    for number in range(bins):
        size = n // bins + (number < n % bins)
        part = order[start : start + size]
        total += size / n * abs(p[part].mean() - y[part].mean())
        start += size
    assert calibration_error(p, y) == pytest.approx(total, abs=1e-12)


def test_unlabelled_images_are_left_out():
    scores, labels = drawn()
    more = np.r_[scores, 50.0, -50.0], np.r_[labels, np.nan, np.nan]
    assert fit_calibration(*more) == fit_calibration(scores, labels)


def test_one_sentence_for_each_mistake():
    scores, labels = drawn(60)
    with pytest.raises(UserError, match="calibration of 'mass' needs 10 images with it and 10 without, got 0 and 60"):
        fit_calibration(scores, labels * 0, name="mass")
    with pytest.raises(UserError, match="got 51 and 9"):
        fit_calibration(scores, np.arange(60) >= 9)
    with pytest.raises(UserError, match="5 patients with it and 5 without, got 2 of one kind"):
        fit_calibration(scores, np.arange(60) >= 20, np.minimum(np.arange(60) // 10, 5))
    with pytest.raises(UserError, match="method must be platt or isotonic, got 'sigmoid'"):
        fit_calibration(scores, labels, method="sigmoid")
    with pytest.raises(ValueError, match=r"must all be \[N\]"):
        fit_calibration(scores, labels[:-1])
    for bad in (np.r_[np.nan, scores[1:]], np.r_[np.inf, scores[1:]]):
        with pytest.raises(ValueError, match="scores finite"):
            fit_calibration(bad, labels)
    with pytest.raises(ValueError, match="labels must be 0, 1 or NaN"):
        fit_calibration(scores, labels + 1)


def test_ties_and_constant_scores():
    labels = np.tile([0.0, 1.0, 1.0], 20)
    for method in ("platt", "isotonic"):
        fitted: Calibration = fit_calibration(np.full(60, 2.5), labels, method=method)
        assert fitted([2.5])[0] == pytest.approx(2 / 3, abs=0.02)
        assert fitted.brier == pytest.approx(fitted.brier_constant, abs=0.02)
