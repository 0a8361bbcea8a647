"""AUROC, AUPRC and average precision of weighted samples against scikit-learn on the resampled rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from carzero.evaluate.ranking import Ranked


def scikit(labels, scores):
    """The three figures of some rows; NaN where they are not defined."""
    positives = labels.sum()
    if not positives:
        return np.nan, np.nan, np.nan
    precision, recall, _ = precision_recall_curve(labels, scores)
    area = roc_auc_score(labels, scores) if positives < len(labels) else np.nan
    return area, auc(recall, precision), average_precision_score(labels, scores)


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_equals_scikit_learn_on_every_resample(data):
    n = data.draw(st.integers(1, 40))
    units = data.draw(st.integers(1, n))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # few distinct scores make ties; many make none
    scores = rng.integers(0, data.draw(st.sampled_from([1, 3, 1000])), n).astype(float)
    labels = rng.random(n) < data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    member = rng.integers(0, units, n)
    counts = rng.integers(0, 4, (units, 6)).astype(np.int32)
    got = Ranked(labels, scores, member, units).figures(counts)
    for b in range(6):
        rows = np.repeat(np.arange(n), counts[member, b])
        wanted = scikit(labels[rows], scores[rows]) if len(rows) else (np.nan,) * 3
        ours = [got.auroc[b], got.auprc[b], got.average_precision[b]]
        assert np.allclose(ours, wanted, rtol=0, atol=1e-12, equal_nan=True), (b, ours, wanted)
        assert got.positives[b] == labels[rows].sum()


def test_hand_computed():
    # descending: 1 | 0 | 1 0 (tied) | 0
    labels = np.array([True, False, True, False, False])
    got = Ranked(labels, np.array([9.0, 7, 5, 5, 1]), np.arange(5), 5).figures(np.ones((5, 1), np.int32))
    # the first positive beats 3 of 3 negatives, the second 1 and ties with 1
    assert got.auroc[0] == (3 + 1.5) / 6
    # precision 1 at recall 1/2, 1/2 before and 2/4 at recall 1
    assert got.average_precision[0] == 0.5 * 1 + 0.5 * 0.5
    assert got.auprc[0] == 0.5 * 1 + 0.5 * (0.5 + 0.5) / 2
