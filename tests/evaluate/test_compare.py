"""Paired tests against DeLong's variance written out by kernels, and against their behaviour under the null."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from drawn_samples import drawn_sample
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from carzero.errors import UserError
from carzero.evaluate.compare import compare, delong


def two_scores(seed, n=150, better=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    shared = rng.normal(size=n)
    return labels, np.round(shared + labels * better + 0.5 * rng.normal(size=n), 1), np.round(shared + labels * 0.6, 1)


def test_delong_equals_its_kernels_written_out():
    labels, first, second = two_scores(0)
    v10, v01 = [], []
    for s in (first, second):
        # psi of DeLong et al. 1988: 1, 1/2 or 0 for each pair of a positive and a negative
        psi = np.sign(s[labels][:, None] - s[~labels][None, :]) / 2 + 0.5
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    covariance = np.cov(v10) / labels.sum() + np.cov(v01) / (~labels).sum()
    difference = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    z = difference / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert delong(labels, first, second) == pytest.approx((difference, 2 * stats.norm.sf(abs(z))), abs=1e-12)


def test_several_images_of_a_patient_count_once():
    labels, first, second = two_scores(1, better=0.9)
    single = delong(labels, first, second)[1]
    again = np.tile(np.arange(150), 4)
    copied = delong(labels[again], first[again], second[again])[1]
    by_patient = delong(labels[again], first[again], second[again], again)[1]
    assert copied < 0.05 < single, "copies taken for patients make any difference significant"
    assert by_patient == pytest.approx(single, abs=1e-12)


def test_alike_models_and_too_few_positives():
    labels, first, _ = two_scores(2)
    assert delong(labels, first, first) == (0.0, 1.0)
    one = np.arange(150) == 3
    assert np.isnan(delong(one, first, -first)[1])
    assert np.isnan(delong(np.zeros(150, bool), first, -first)).all()


def test_p_values_are_uniform_where_models_are_equally_good():
    rng = np.random.default_rng(3)
    p = []
    for _ in range(400):
        labels = rng.random(120) < 0.4
        p.append(delong(labels, labels + rng.normal(size=120), labels + rng.normal(size=120))[1])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_comparison_pairs_resamples_and_corrects_for_many_classes():
    ours = drawn_sample(seed=4, n=250, prevalence=(0.4, 0.3, 0.2), patients=None, digits=3)
    rng = np.random.default_rng(5)
    theirs = dataclasses.replace(ours, scores=ours.scores + rng.normal(size=ours.scores.shape))
    got = compare(ours, theirs, resamples=300)
    classes = list(ours.classes)
    assert list(got) == [*classes, "macro"]
    for c, name in enumerate(classes):
        y = ours.labels[:, c]
        wanted = roc_auc_score(y, ours.scores[:, c]) - roc_auc_score(y, theirs.scores[:, c])
        assert got[name].interval.value == pytest.approx(wanted, abs=1e-12)
        assert got[name].interval.low < wanted < got[name].interval.high
        assert got[name].p_delong == pytest.approx(delong(y == 1, ours.scores[:, c], theirs.scores[:, c])[1], abs=1e-12)
    holm = multipletests([got[name].p_delong for name in classes], method="holm")[1]
    assert [got[name].p_delong_corrected for name in classes] == pytest.approx(list(holm), abs=1e-12)
    assert got["macro"].p_bootstrap < 0.05
    assert np.isnan(got["macro"].p_delong)
    back = compare(theirs, ours, resamples=300)
    assert back["macro"].interval.value == pytest.approx(-got["macro"].interval.value, abs=1e-12)
    assert back["macro"].p_bootstrap == pytest.approx(got["macro"].p_bootstrap, abs=1e-12)


def test_other_images_are_refused():
    ours = drawn_sample(n=40)
    with pytest.raises(UserError, match="same images"):
        compare(ours, ours.take(np.arange(40) < 20))


@pytest.mark.parametrize("shared", [False, True])
def test_p_values_are_uniform_where_patients_have_several_images(shared):
    rng = np.random.default_rng(7)
    patient = np.repeat(np.arange(60), 4)
    p, by_image = [], []
    for _ in range(400):
        # a finding that comes and goes, or one that is in all images of a patient or in none
        labels = (rng.random(60) < 0.4)[patient] if shared else rng.random(240) < 0.4
        # what a patient adds to the scores of one model is the same for all of its images
        first, second = (labels + rng.normal(size=240) + 2 * rng.normal(size=60)[patient] for _ in range(2))
        p.append(delong(labels, first, second, patient)[1])
        by_image.append(delong(labels, first, second)[1])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    # taking images for patients finds a difference in a quarter of the cases that have none
    assert (np.mean(np.array(by_image) < 0.05) > 0.2) == shared
