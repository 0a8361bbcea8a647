"""Quantiles are scipy's, a reference holds for the weights and prompts that it was made with, and files survive."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from carzero.data.phantom import draw
from carzero.errors import UserError
from carzero.models.checkpoint import load
from carzero.zeroshot.calibration import fit_calibration
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.columns import add_columns
from carzero.zeroshot.reference import KNOTS, ScoreReference, fingerprint, thinned

PROMPTS = {"mass": ["there is mass", "left mass"], "effusion": ["there is effusion"]}


def of_scores(**scores):
    prompts = dict.fromkeys(scores, ("x",))
    return ScoreReference(
        "m", "mean", prompts, {n: thinned(s) for n, s in scores.items()}, len(next(iter(scores.values())))
    )


@settings(max_examples=80, deadline=None)
@given(
    reference=st.lists(st.integers(-4, 4), min_size=2, max_size=30),
    scores=st.lists(st.integers(-6, 6), max_size=10),
)
def test_quantile_is_scipys_with_ties(reference, scores):
    expected = [percentileofscore(reference, score, kind="mean") / 100 for score in scores]
    np.testing.assert_allclose(of_scores(a=np.array(reference)).quantile("a", scores), expected, atol=1e-12)


def test_a_large_set_is_thinned_without_moving_a_quantile():
    scores = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    reference = of_scores(a=scores)
    assert len(reference.scores["a"]) == KNOTS
    assert reference.scores["a"][0] == scores.min()
    assert reference.scores["a"][-1] == scores.max()
    some = np.linspace(-3, 3, 41)
    exact = [percentileofscore(scores, value, kind="mean") / 100 for value in some]
    np.testing.assert_allclose(reference.quantile("a", some), exact, atol=1.5 / KNOTS)


@pytest.fixture(scope="module")
def classifier(weights):
    return ZeroShotClassifier(load(weights), PROMPTS, workers=0, dtype=torch.float32)


@pytest.fixture(scope="module")
def table(classifier):
    return classifier.predict([draw(i, size=64).image for i in range(24)])


def with_calibration(classifier, table):
    labels = np.arange(24) % 2
    return ScoreReference.of(classifier, table, {"mass": fit_calibration(table["mass"], labels, method="isotonic")})


def test_file_survives(classifier, table, tmp_path):
    reference = with_calibration(classifier, table)
    reference.save(tmp_path / "scores.json")
    again = ScoreReference.load(tmp_path / "scores.json")
    assert again == reference
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    again.check(classifier)
    np.testing.assert_array_equal(
        again.probability("mass", table["mass"]), reference.probability("mass", table["mass"])
    )


def test_columns(classifier, table):
    reference = with_calibration(classifier, table)
    classifier.predict([draw(i, size=64).image for i in range(24)])
    full = add_columns(table, ["quantile", "probability", "guard"], classifier.verdicts, reference)
    assert list(full.columns) == [
        "image", "mass", "effusion", "mass quantile", "effusion quantile", "mass probability", "guard"
    ]  # fmt: skip
    pd.testing.assert_frame_equal(full[["image", "mass", "effusion"]], table)
    # of the reference set itself: the middles of 24 equal steps
    np.testing.assert_allclose(np.sort(full["effusion quantile"]), (np.arange(24) + 0.5) / 24)
    assert full["mass probability"].between(0, 1).all()
    with pytest.raises(UserError, match="has the name of a column that was asked for"):
        add_columns(table.rename(columns={"effusion": "mass quantile"}), ["quantile"], classifier.verdicts,
                    of_scores(mass=[1, 2], **{"mass quantile": [1, 2]}))  # fmt: skip
    with pytest.raises(UserError, match="no calibration of 'mass'"):
        add_columns(table, ["probability"], classifier.verdicts, ScoreReference.of(classifier, table))


def test_other_weights_and_prompts_are_refused(classifier, table, weights):
    reference = ScoreReference.of(classifier, table)
    other = load(weights)
    assert fingerprint(other) == fingerprint(classifier.model) == reference.model
    for name, part in (("image", other.image_encoder), ("text", other.text_encoder), ("decoder", other.decoder)):
        parameter = next(part.parameters())
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        assert fingerprint(other) != reference.model, name
        with torch.no_grad():
            parameter.view(-1)[0] -= 1e-3
    with torch.no_grad():
        other.decoder.norm.weight[-1] *= 2
    with pytest.raises(UserError, match="belongs to other weights"):
        reference.check(ZeroShotClassifier(other, PROMPTS))
    model = classifier.model
    with pytest.raises(UserError, match="made with --pool mean, not max"):
        reference.check(ZeroShotClassifier(model, PROMPTS, pool="max"))
    with pytest.raises(UserError, match="has no class 'nodule'; it has mass, effusion"):
        reference.check(ZeroShotClassifier(model, {"nodule": "there is mass"}))
    with pytest.raises(UserError, match="asked for 'mass' with other prompts"):
        reference.check(ZeroShotClassifier(model, {"mass": "there is mass"}))
    # some of the classes are enough
    reference.check(ZeroShotClassifier(model, {"effusion": PROMPTS["effusion"]}))


def test_one_sentence_for_each_mistake(classifier, table, tmp_path):
    with pytest.raises(UserError, match="needs two images or more, got 1"):
        ScoreReference.of(classifier, table[:1])
    with pytest.raises(UserError, match="There is no reference of scores"):
        ScoreReference.load(tmp_path / "scores.json")
    path = tmp_path / "scores.json"
    ScoreReference.of(classifier, table).save(path)
    stored = json.loads(path.read_text())
    for damaged in ("", "[]", "{}", json.dumps({**stored, "scores": {}}), json.dumps({**stored, "more": 1})):
        path.write_text(damaged)
        with pytest.raises(UserError, match="is not a reference of scores"):
            ScoreReference.load(path)
    with pytest.raises(UserError, match="cannot be written"):
        ScoreReference.of(classifier, table).save(tmp_path / "gone" / "scores.json")
