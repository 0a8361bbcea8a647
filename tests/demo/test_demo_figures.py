"""The demo's rows on scores whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from carzero.demo import figures
from carzero.demo.baselines import pixel_scores
from carzero.demo.examples import ranks


def scored(keys, labels, logits):
    return figures.Scored(
        list(keys), [str(k) for k in keys], np.array(labels, dtype=bool), np.array(logits, dtype=np.float32)
    )


def test_macro_is_the_mean_over_columns():
    s = scored(["a", "b"], [[1, 0], [1, 1], [0, 0], [0, 1]], [[3, 0], [2, 1], [1, 2], [0, 3]])
    # a is ranked without a mistake; b has three of four pairs in order
    assert s.macro(50).value == pytest.approx((1.0 + 0.75) / 2)
    assert s.only(["b"]).macro(50).value == pytest.approx(0.75)
    assert {k: v.value for k, v in figures.by_finding(s, 50).items()} == pytest.approx({"a": 1.0, "b": 0.75})


def test_side_against_side_looks_only_at_images_with_one_side():
    left, right = ("nodule", "left"), ("nodule", "right")
    labels = [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [1, 1]]
    perfect = [[2, 0], [2, 0], [0, 2], [0, 2], [9, 9], [9, 9]]
    blind = [[2, 2], [2, 2], [2, 2], [2, 2], [0, 0], [5, 5]]
    assert figures.side_against_side(scored([left, right], labels, perfect)) == 1.0
    assert figures.side_against_side(scored([left, right], labels, blind)) == 0.5
    # the other side is not asked for, so there is nothing to compare
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
        assert np.isnan(figures.side_against_side(scored([left], [[1], [0]], [[1], [0]])))


def test_negated_twins_tell_a_model_that_reads_no_from_one_that_does_not():
    labels = [[1], [1], [0], [0]]
    positive = scored(["a"], labels, [[3], [2], [1], [0]])
    reads, ignores = (scored(["a"], labels, x) for x in ([[0], [1], [2], [3]], [[3], [2], [1], [0]]))
    assert figures.negated_twins(positive, reads, 20)[0].value == 1.0
    assert figures.negated_twins(positive, reads, 20)[1] == 1.0
    assert figures.negated_twins(positive, ignores, 20)[0].value == 0.0
    assert figures.negated_twins(positive, ignores, 20)[1] == 0.5


def test_ranks_are_shares_of_lower_images_per_prompt():
    found = ranks(np.array([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0]]))
    assert found.tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    assert ranks(np.array([[1.0, 2.0]])).tolist() == [[0, 0]]


def test_pixel_scores_find_a_bright_corner_and_not_noise():
    random = np.random.default_rng(0)
    images = random.integers(60, 120, (160, 40, 40), dtype=np.uint8)
    labels = np.stack([random.random(160) < 0.5, random.random(160) < 0.5], axis=1)
    images[labels[:, 0], :20, :20] += 60
    scores = pixel_scores(list(images[:100]), labels[:100], list(images[100:]))
    assert scores.shape == (60, 2)
    found, noise = (figures.by_finding(scored(["a"], labels[100:, [c]], scores[:, [c]]), 20)["a"].value for c in (0, 1))
    assert found == 1.0
    assert 0.3 < noise < 0.7
