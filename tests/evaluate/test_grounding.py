"""Maps against boxes: hand-computed cases, scikit-learn on the pixels, intervals by patient."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from carzero.data.phantom import draw
from carzero.evaluate.grounding import (
    MEAN,
    MapScore,
    box_mask,
    grounding_table,
    inside,
    pointing_accuracy,
    score_map,
)


def test_pointing_game():
    assert inside((10, 10), [(0, 0, 5, 5), (8, 8, 12, 12)])
    assert not inside((6, 6), [(0, 0, 5, 5), (8, 8, 12, 12)])
    assert not inside((6, 6), [])
    peaks = [(1.0, 1.0), (9.0, 9.0), (6.0, 6.0), (1.0, 1.0)]
    boxes = [[(0, 0, 5, 5)], [(0, 0, 5, 5), (8, 8, 12, 12)], [(0, 0, 5, 5)], []]
    assert pointing_accuracy(peaks, boxes) == 0.5
    assert math.isnan(pointing_accuracy([], []))
    with pytest.raises(ValueError, match="one list of boxes per peak, got 1 for 2 peaks"):
        pointing_accuracy(peaks[:2], boxes[:1])


def test_a_map_by_hand():
    values = np.array([[0, 0, 0, 0], [0, 4, 2, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    # the box holds the pixels (1, 1), (1, 2), (2, 1), (2, 2): 7 of 8 of the sum, a quarter of the image
    score = score_map(values, [(1, 1, 3, 3)], thresholds=(0.25, 0.5, 1.0))
    assert score.hit
    assert score.chance == 0.25
    assert score.inside == 7 / 8
    # found at 0.25 of 4: four pixels, three of them in the box; at 0.5 two; at 1 one
    assert score.iou == (3 / 5, 2 / 4, 1 / 4)
    assert score.dice == (6 / 8, 4 / 6, 2 / 5)
    # the same values, another peak: a map of patches may have its peak in the padding, outside the image
    assert not score_map(values, [(1, 1, 3, 3)], peak=(-3.0, 1.5)).hit
    assert score_map(values, [(0, 0, 1, 1), (1.2, 1.2, 1.9, 1.9)]).hit


def test_pixels_count_by_their_centres():
    assert box_mask([(0.6, 0.0, 2.5, 1.0)], 2, 4).tolist() == [[False, True, False, False], [False] * 4]
    assert box_mask([(0.5, 0.0, 2.6, 1.0)], 2, 4).tolist() == [[True, True, True, False], [False] * 4]
    assert box_mask([(-10, -10, 100, 100)], 2, 4).all()
    assert not box_mask([], 2, 4).any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 5), threshold=st.sampled_from((0.2, 0.5, 0.8, 1.0)))
def test_iou_and_dice_are_those_of_scikit_learn(seed, levels, threshold):
    rng = np.random.default_rng(seed)
    # few levels: many pixels lie at the threshold
    values = rng.integers(0, levels, (rng.integers(1, 9), rng.integers(1, 9))).astype(float)
    height, width = values.shape
    boxes = []
    for _ in range(rng.integers(1, 4)):
        x, y = rng.integers(0, width), rng.integers(0, height)
        boxes.append((x, y, x + rng.integers(1, 5), y + rng.integers(1, 5)))
    truth = np.zeros(values.shape, bool)
    for x0, y0, x1, y1 in boxes:
        truth[y0:y1, x0:x1] = True
    found = values >= threshold * values.max() if values.max() else np.zeros_like(truth)
    score = score_map(values, boxes, thresholds=(threshold,))
    assert score.iou[0] == pytest.approx(jaccard_score(truth.ravel(), found.ravel(), zero_division=0), abs=1e-12)
    assert score.dice[0] == pytest.approx(f1_score(truth.ravel(), found.ravel(), zero_division=0), abs=1e-12)
    assert score.chance == truth.mean()


def test_drawn_radiographs_give_the_tight_bounds():
    for index in range(60):
        phantom = draw(index, size=96)
        for finding in phantom.findings:
            values = np.zeros((96, 96))
            x0, y0, x1, y1 = finding.box
            values[y0:y1, x0:x1] = 1
            perfect = score_map(values, [finding.box])
            assert (perfect.hit, perfect.inside, perfect.iou, perfect.dice) == (True, 1.0, (1.0,) * 3, (1.0,) * 3)
            wrong = score_map(1 - values + 1e-3 * values, [finding.box])
            assert not wrong.hit
            assert wrong.iou == (0.0,) * 3
            even = score_map(np.ones((96, 96)), [finding.box])
            assert even.inside == pytest.approx(even.chance)


def test_a_map_of_zeros_finds_nothing():
    score = score_map(np.zeros((4, 4)), [(0, 0, 4, 4)])
    assert (score.hit, score.inside, score.iou) == (False, 0.0, (0.0, 0.0, 0.0))


def test_damaged_input_is_refused():
    values = np.ones((4, 6))
    for boxes in ([], [(10, 10, 20, 20)], [(1.6, 1.6, 1.9, 1.9)]):
        with pytest.raises(ValueError, match="hold no pixel of the image of 6 x 4"):
            score_map(values, boxes)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="finite values of 0 and more"):
            score_map(np.where(np.eye(4, 6) > 0, bad, values), [(0, 0, 2, 2)])
    with pytest.raises(ValueError, match="thresholds must lie above 0"):
        score_map(values, [(0, 0, 2, 2)], thresholds=(0.0,))


def score(hit, iou=0.0):
    return MapScore(bool(hit), 0.1, 0.2, (iou,), (2 * iou / (1 + iou),))


def test_table_by_hand():
    findings = ["mass", "effusion", "mass", "mass", "effusion"]
    scores = [score(1, 0.5), score(1, 0.2), score(0, 0.1), score(1, 0.0), score(1, 0.4)]
    table = grounding_table(findings, scores, ["a", "a", "b", "a", "b"], thresholds=(0.5,), seed=3)
    assert table["finding"].tolist() == ["mass", "effusion", MEAN]
    assert table["n"].tolist() == [3, 2, 5]
    assert table["patients"].tolist() == [2, 2, 2]
    assert table["pointing"].tolist() == pytest.approx([2 / 3, 1.0, (2 / 3 + 1) / 2])
    assert table["iou 0.5"].tolist() == pytest.approx([0.2, 0.3, 0.25])
    # two patients: a resample is aa, ab or bb, so mass is 1, 2/3 or 0 and the interval reaches from one to the other
    assert table["pointing low"].tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert table["pointing high"].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_interval_is_that_of_the_patients():
    rng = np.random.default_rng(0)
    hits = rng.random(50) < 0.4
    # each patient has its map four times: four times the maps say no more
    once = grounding_table(["m"] * 50, [score(h) for h in hits], list(range(50)), thresholds=(0.5,))
    four = grounding_table(["m"] * 200, [score(h) for h in hits.repeat(4)], np.arange(50).repeat(4), thresholds=(0.5,))
    wide, same = (t.loc[0, "pointing high"] - t.loc[0, "pointing low"] for t in (once, four))
    assert same == pytest.approx(wide, abs=1e-9)
    # normal approximation of a share
    p = hits.mean()
    assert wide == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 50), rel=0.12)
    apart = grounding_table(["m"] * 200, [score(h) for h in hits.repeat(4)], thresholds=(0.5,))
    narrow = apart.loc[0, "pointing high"] - apart.loc[0, "pointing low"]
    assert narrow == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 200), rel=0.12)


def test_a_rare_finding_and_an_empty_table():
    # in many resamples the one patient with an effusion does not occur: those say nothing of it
    table = grounding_table(["mass"] * 9 + ["effusion"], [score(1)] * 9 + [score(0)], thresholds=(0.5,))
    assert table["pointing"].tolist() == [1.0, 0.0, 0.5]
    assert np.isfinite(table.drop(columns="finding").to_numpy(float)).all()
    assert len(grounding_table([], [])) == 0
    with pytest.raises(ValueError, match="must be as many, got 1, 2 and None"):
        grounding_table(["mass"], [score(1)] * 2)
