"""Every figure of an evaluation against scikit-learn, and its intervals against resamples written out."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_samples import drawn_sample
from sklearn import metrics

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Resampling
from carzero.evaluate.evaluation import evaluate, frequency_groups
from carzero.evaluate.tables import Sample


def trapezoid(labels, scores):
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    return metrics.auc(recall, precision)


def test_point_figures_equal_scikit_learn():
    sample = drawn_sample()
    got = evaluate(sample, resamples=20)
    y, s = sample.labels, sample.scores
    for average in ("macro", "micro", "weighted"):
        wanted = metrics.roc_auc_score(y, s, average=average)
        assert got.overall[f"{average}_auroc"].value == pytest.approx(wanted, abs=1e-12)
        wanted = metrics.average_precision_score(y, s, average=average)
        assert got.overall[f"{average}_average_precision"].value == pytest.approx(wanted, abs=1e-12)
    areas = [trapezoid(y[:, c], s[:, c]) for c in range(3)]
    assert got.overall["macro_auprc_trapezoid"].value == pytest.approx(np.mean(areas), abs=1e-12)
    assert got.overall["micro_auprc_trapezoid"].value == pytest.approx(trapezoid(y.ravel(), s.ravel()), abs=1e-12)
    for c, figures in enumerate(got.per_class.values()):
        assert (figures.positives, figures.negatives) == ((y[:, c] == 1).sum(), (y[:, c] == 0).sum())
        assert figures.auroc.value == pytest.approx(metrics.roc_auc_score(y[:, c], s[:, c]), abs=1e-12)
        assert figures.auprc_trapezoid.value == pytest.approx(areas[c], abs=1e-12)


def test_intervals_equal_resampled_patients():
    sample = drawn_sample(seed=1, n=120, patients=30, missing=0.1)
    got = evaluate(sample, resamples=60, seed=9)
    assert got.drawn[:2] == ("patient", len(set(sample.patient)))
    weights = np.concatenate(list(Resampling(sample.patient, resamples=60, seed=9).weights())).astype(int)
    macro, micro, weighted = [], [], []
    for w in weights:
        rows = np.repeat(np.arange(120), w)
        y, s = sample.labels[rows], sample.scores[rows]
        known = ~np.isnan(y)
        each = [metrics.roc_auc_score(y[k, c], s[k, c]) for c, k in enumerate(known.T)]
        macro.append(np.mean(each))
        weighted.append(np.average(each, weights=(y == 1).sum(0)))
        micro.append(trapezoid(y[known], s[known]))
    for name, values in (("macro_auroc", macro), ("micro_auprc_trapezoid", micro), ("weighted_auroc", weighted)):
        interval = got.overall[name]
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)


def test_threads_change_no_bit(monkeypatch):
    sample = drawn_sample(seed=2)
    several = repr(evaluate(sample, resamples=100))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert repr(evaluate(sample, resamples=100)) == several


def test_ignored_labels_and_absent_classes_are_reported():
    sample = drawn_sample(seed=3, prevalence=(0.5, 0.3, 0.0, 1.0), missing=0.2)
    got = evaluate(sample, resamples=30)
    assert got.undefined == ["class 2", "class 3"]
    known = ~np.isnan(sample.labels)
    each = [metrics.roc_auc_score(sample.labels[known[:, c], c], sample.scores[known[:, c], c]) for c in (0, 1)]
    assert got.overall["macro_auroc"].value == pytest.approx(np.mean(each), abs=1e-12)
    absent, always = got.per_class["class 2"], got.per_class["class 3"]
    assert absent.positives == 0
    assert np.isnan([absent.auroc.value, absent.auroc.low, absent.auprc_trapezoid.value]).all()
    # precision needs positives only
    assert always.negatives == 0
    assert always.average_precision.value == 1.0
    assert got.per_class["class 0"].ignored == np.isnan(sample.labels[:, 0]).sum()


def test_groups_by_frequency_as_published():
    counts = np.array([1000, 500, 300, 11, 10, 2, 0])
    groups = frequency_groups(counts, rarest=2)
    # numpy's 65th percentile of the seven counts lies at 3.9 of 6: 0.9 of the way from 11 to 300
    assert np.percentile(counts, 65) == pytest.approx(271.1)
    assert groups == {"head": [0, 1, 2], "medium": [3], "tail": [4, 5, 6], "rarest": [6, 5]}


def test_accuracy_where_each_image_has_one_class():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 5, 200)
    scores = rng.normal(size=(200, 5)) + 2 * np.eye(5)[truth]
    sample = Sample([str(i) for i in range(200)], tuple("abcde"), np.eye(5)[truth], scores)
    got = evaluate(sample, resamples=50)
    assert got.accuracy.value == metrics.accuracy_score(truth, scores.argmax(1))
    assert got.accuracy.low < got.accuracy.value < got.accuracy.high
    assert got.drawn[0] == "image"
    assert evaluate(drawn_sample(), resamples=5).accuracy is None


def test_splits_give_the_figures_of_each_group_and_their_gap():
    sample = drawn_sample(seed=6, n=400, prevalence=(0.4, 0.3))
    got = evaluate(sample, resamples=50, by=("sex", "age")).splits
    women = sample.columns["sex"].to_numpy() == "F"
    each = {}
    for name, rows in (("F", women), ("M", ~women)):
        each[name] = [metrics.roc_auc_score(sample.labels[rows, c], sample.scores[rows, c]) for c in range(2)]
        group = got["sex"].groups[name]
        assert group.rows == rows.sum()
        assert [i.value for i in group.auroc.values()] == pytest.approx(each[name], abs=1e-12)
        assert group.macro_auroc.value == pytest.approx(np.mean(each[name]), abs=1e-12)
    gap = abs(np.mean(each["F"]) - np.mean(each["M"]))
    assert got["sex"].gap.value == pytest.approx(gap, abs=1e-12)
    assert got["sex"].gap.low <= gap <= got["sex"].gap.high
    assert list(got["age"].groups) == ["< 18", "18 to < 40", "40 to < 60", "60 to < 80", ">= 80"]
    assert sum(g.rows for g in got["age"].groups.values()) == 400
    at_18 = sample.columns["age"].between(18, 39).sum()
    assert got["age"].groups["18 to < 40"].rows == at_18


def test_small_and_unknown_groups_stay_out_of_the_gap():
    sample = drawn_sample(seed=7, n=200, prevalence=(0.4,))
    sample.columns["site"] = ["a"] * 90 + ["b"] * 90 + ["c"] * 10 + [None] * 10
    split = evaluate(sample, resamples=20, by=("site",)).splits["site"]
    assert [(n, g.in_gap) for n, g in split.groups.items()] == [
        ("a", True), ("b", True), ("c", False), ("(unknown)", False),
    ]  # fmt: skip
    assert {split.best, split.worst} == {"a", "b"}


def test_misuse_is_named():
    sample = drawn_sample(n=30)
    sample.columns["one"] = "x"
    with pytest.raises(UserError, match="no column 'weight'"):
        evaluate(sample, by=("weight",))
    with pytest.raises(UserError, match="one value 'x'"):
        evaluate(sample, by=("one",))
    with pytest.raises(UserError, match="no image or no class"):
        evaluate(sample.take(np.zeros(30, bool)))


@pytest.mark.slow
def test_padchest_size_within_two_gigabytes_and_a_minute():
    import resource
    import time

    rng = np.random.default_rng(0)
    prevalence = np.geomspace(0.3, 3e-4, 192)
    labels = (rng.random((39_053, 192)) < prevalence).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    sample = Sample([str(i) for i in range(39_053)], tuple(map(str, range(192))), labels, scores)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    got = evaluate(sample)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    c = 150
    wanted = metrics.roc_auc_score(labels[:, c], scores[:, c])
    assert list(got.per_class.values())[c].auroc.value == pytest.approx(wanted, abs=1e-12)
    assert grown < 2048
    # the time of both cores; what passes on a clock depends on what else runs
    assert seconds < 2 * 60, f"{seconds:.0f} s"
