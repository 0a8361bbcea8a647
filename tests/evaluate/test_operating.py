"""Figures at a threshold against scikit-learn, and thresholds against a search over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Resampling
from carzero.evaluate.operating import Rule, at_prevalence, choose_threshold, operating_points


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    return labels, np.round(rng.normal(size=200) + labels, 1)


def test_figures_equal_scikit_learn(data):
    labels, scores = data
    called = scores >= 0.5
    point = operating_points(
        labels[:, None].astype(float), scores[:, None], np.array([0.5]), Resampling(200, resamples=40)
    )[0]
    wanted = {
        "sensitivity": metrics.recall_score(labels, called),
        "specificity": metrics.recall_score(~labels, ~called),
        "ppv": metrics.precision_score(labels, called),
        "npv": metrics.precision_score(~labels, ~called),
        "f1": metrics.f1_score(labels, called),
        "mcc": metrics.matthews_corrcoef(labels, called),
    }
    assert {n: i.value for n, i in point.figures.items()} == pytest.approx(wanted, abs=1e-12)
    draws = []
    for w in np.concatenate(list(Resampling(200, resamples=40).weights())).astype(int):
        rows = np.repeat(np.arange(200), w)
        draws.append(metrics.matthews_corrcoef(labels[rows], called[rows]))
    interval = point.figures["mcc"]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)


@pytest.mark.parametrize("rule", ["youden", "f1", "mcc", "sensitivity=0.9", "specificity=0.9"])
def test_thresholds_are_the_best_of_all(data, rule):
    labels, scores = data

    def merit(threshold):
        called = scores >= threshold
        sensitivity, specificity = metrics.recall_score(labels, called), metrics.recall_score(~labels, ~called)
        if rule == "youden":
            return sensitivity + specificity
        if rule == "f1":
            return metrics.f1_score(labels, called)
        if rule == "mcc":
            return metrics.matthews_corrcoef(labels, called)
        if rule.startswith("sensitivity"):
            return specificity if sensitivity >= 0.9 else -1
        return sensitivity if specificity >= 0.9 else -1

    chosen = choose_threshold(labels, scores, Rule.parse(rule))
    assert chosen in scores
    assert merit(chosen) == pytest.approx(max(merit(t) for t in np.unique(scores)), abs=1e-12)


def test_predictive_values_at_a_prevalence_by_hand():
    # of 1000, 10 have it: 9 found, 99 of the 990 others called too
    ppv, npv = at_prevalence(np.array(0.9), np.array(0.9), 0.01)
    assert ppv == pytest.approx(9 / 108, abs=1e-12)
    assert npv == pytest.approx(891 / 892, abs=1e-12)


def test_prevalence_of_the_sample_gives_its_own_predictive_values(data):
    labels, scores = data
    point = operating_points(
        labels[:, None].astype(float), scores[:, None], np.array([0.5]), Resampling(200, resamples=20),
        prevalence={0: labels.mean()},
    )[0]  # fmt: skip
    assert point.figures["ppv_at_prevalence"].value == pytest.approx(point.figures["ppv"].value, abs=1e-12)
    assert point.figures["npv_at_prevalence"].value == pytest.approx(point.figures["npv"].value, abs=1e-12)


def test_classes_without_positives_and_scores_without_room():
    assert np.isnan(choose_threshold(np.zeros(3, bool), np.arange(3.0), Rule.parse("f1")))
    none = operating_points(np.zeros((3, 1)), np.arange(3.0)[:, None], np.array([np.nan]), Resampling(3, resamples=5))
    assert all(np.isnan(i.value) for i in none[0].figures.values())
    # the highest score is a negative's: no threshold among the scores has full specificity, so nothing is called
    threshold = choose_threshold(np.array([True, False]), np.array([1.0, 2.0]), Rule.parse("specificity=1"))
    assert threshold > 2


@pytest.mark.parametrize("text", ["best", "sensitivity", "sensitivity=1.5", "youden=1", "threshold=x"])
def test_rules_are_read_strictly(text):
    with pytest.raises(UserError, match="operating point"):
        Rule.parse(text)
