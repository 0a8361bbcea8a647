"""Scores, their meaning, maps and files are those of the classifier, the reference, the explainer."""

from __future__ import annotations

import csv
import dataclasses
import io

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from app_inputs import ASKED, radiograph
from scipy.stats import percentileofscore

from carzero.app import view
from carzero.app.asking import read_findings
from carzero.app.desk import Desk
from carzero.app.files import score_table, write_map, write_scores
from carzero.app.pictures import common_ceiling
from carzero.app.radiograph import open_radiograph
from carzero.cli import main
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.zeroshot.classify import choose_dtype
from carzero.zeroshot.explain import Explainer

TEXT = 'effusion\nmass\n"left effusion"\nright mass'


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("app") / "a.png"
    cv2.imwrite(str(path), radiograph(5, 300, 200))
    return path


@pytest.fixture(scope="module")
def reading(desk, path):
    return desk.read(open_radiograph(path), read_findings(TEXT))


def test_scores_are_those_of_the_command(reading, path, weights, tmp_path):
    prompts, out = tmp_path / "p.csv", tmp_path / "s.csv"
    prompts.write_text(
        "class,prompt\neffusion,There is effusion\nmass,There is mass\nl,left effusion\nrm,There is right mass\n"
        "no effusion,There is no effusion\nno rm,There is no right mass\n"
    )
    assert main(["classify", str(path), "--prompts", str(prompts), "--weights", str(weights), "--out", str(out)]) == 0
    row = pd.read_csv(out).iloc[0]
    # the command's dtype is the device's fastest, the page's is float32
    rounding = 1e-6 if choose_dtype(torch.device("cpu"))[0] == torch.float32 else 0.02
    effusion, mass, left, right = reading.answers
    got = [effusion.logit, mass.logit, left.logit, right.logit, effusion.denial_logit, right.denial_logit]
    assert np.allclose(got, row.iloc[1:].to_numpy(float), atol=rounding)
    assert effusion.margin == effusion.logit - effusion.denial_logit
    assert left.denial is left.denial_logit is left.margin is None


def test_quantiles_and_probabilities_are_the_references(reading, reference):
    effusion, mass, left, right = reading.answers
    for answer, name in ((effusion, "effusion"), (mass, "mass"), (left, "lines")):
        expected = percentileofscore(reference.scores[name], np.float32(answer.logit), kind="mean") / 100
        assert answer.quantile == pytest.approx(expected)
    assert mass.probability == pytest.approx(1 / (1 + np.exp(1 - 2 * mass.logit)))
    assert not mass.calibrated
    assert effusion.probability is None
    # the reference set was not asked this
    assert right.quantile is None


def test_a_better_calibration_is_told_from_one_that_is_not(weights, reference, path, desk):
    good = dataclasses.replace(reference.calibrations["mass"], brier=0.1)
    better = Desk(desk.model, dataclasses.replace(reference, calibrations={"mass": good}))
    reading = better.read(open_radiograph(path), read_findings("mass"))
    assert reading.answers[0].calibrated
    assert "no better than a constant" not in view.scores(reading, better)


def test_a_reference_of_other_weights_is_refused(desk, reference):
    with pytest.raises(UserError, match="belongs to other weights"):
        Desk(desk.model, dataclasses.replace(reference, model="0" * 16))


def test_nothing_but_logits_without_a_reference(desk, path):
    bare = Desk(desk.model)
    reading = bare.read(open_radiograph(path), read_findings(TEXT))
    assert {(one.quantile, one.probability) for one in reading.answers} == {(None, None)}
    shown = view.scores(reading, bare)
    assert "probability" not in shown
    assert "%" not in shown
    assert "carries no reference set" in shown
    # findings do not compare, so they stay as asked
    assert [shown.index(f'data-finding="{n}"') for n in range(4)] == sorted(
        shown.index(f'data-finding="{n}"') for n in range(4)
    )


def test_findings_with_quantiles_come_highest_first(desk, path):
    reading = desk.read(open_radiograph(path), read_findings('effusion\nmass\n"left effusion"'))
    shown = view.scores(reading, desk)
    order = sorted(range(3), key=lambda n: shown.index(f'data-finding="{n}"'))
    quantiles = [reading.answers[n].quantile for n in order]
    assert quantiles == sorted(quantiles, reverse=True)
    assert "no better than a constant" in shown


def test_an_unknown_finding_keeps_its_logit_and_says_why(reading, desk):
    shown = view.scores(reading, desk)
    assert "was not asked have their logit alone; it was asked effusion, mass, &#34;left effusion&#34;" in shown


def test_maps_are_the_explainers(reading, desk):
    statement, denied = desk.look(reading, 3)
    expected = Explainer(desk.model, ["There is right mass", "There is no right mass"])(reading.radiograph.grey)
    assert np.array_equal(statement.map, expected[0].map)
    assert np.array_equal(denied.map, expected[1].map)
    assert desk.look(reading, 3)[0] is statement
    assert desk.look(reading, 2)[1] is None


def test_a_model_without_maps_says_so(path):
    from carzero.models.tokenizer import word_tokenizer

    tokenizer = word_tokenizer(["there is no effusion"])
    config = dataclasses.replace(CARZeroConfig.tiny(vocab_size=len(tokenizer)), similarity="cosine")
    cosine = Desk(CARZero(config, tokenizer))
    assert not cosine.maps
    reading = cosine.read(open_radiograph(path), read_findings("effusion"))
    assert "has no attention over the radiograph" in view.scores_only(reading, 0)
    with pytest.raises(UserError, match="similarity='cosine'"):
        cosine.look(reading, 0)


def test_the_table_holds_every_figure_and_no_file_name(reading, tmp_path):
    path = write_scores(reading, tmp_path)
    assert path.name == f"scores_{reading.radiograph.tag}.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["finding"] for row in rows] == ["effusion", "mass", "left effusion", "right mass"]
    for row, answer in zip(rows, reading.answers):
        assert float(row["logit"]) == answer.logit
        assert row["prompt"] == answer.prompt
        assert row["denial"] == (answer.denial or "")
        assert row["quantile"] == ("" if answer.quantile is None else repr(answer.quantile))
    assert rows[0]["guard"] == reading.radiograph.verdict.looks != ""
    assert list(score_table(reading).columns) == [
        "image", "drawn", "finding", "prompt", "logit", "quantile", "probability", "denial", "denial_logit", "margin",
        "guard",
    ]  # fmt: skip
    assert "a.png" not in path.read_text()


def test_the_picture_is_the_overlay_in_pixels_of_the_original(reading, desk, tmp_path):
    statement, denied = desk.look(reading, 0)
    path = write_map(reading, 0, tmp_path)
    assert path.name == f"map_{reading.radiograph.tag}_effusion.png"
    written = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert written.shape == (300, 200, 3)
    ceiling = max(statement.relative.max(), denied.relative.max())
    assert common_ceiling(statement, denied) == pytest.approx(ceiling)
    assert np.array_equal(written, statement.overlay(float(ceiling)))


def test_positions_on_the_page_are_pixels_of_the_original(reading, desk):
    statement, _ = desk.look(reading, 0)
    shown = view.finding(reading, 0)
    x, y = (round(value) for value in statement.peak)
    assert f"greatest at x {x}, y {y}." in shown
    x0, y0, x1, y1 = statement.regions(0.5)[0].box
    assert f'<rect x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>' in shown
    assert 'viewBox="0 0 200 300"' in shown


def test_the_reference_may_lie_outside_the_models_folder(weights, reference, tmp_path):
    import argparse

    from carzero.app.command import open_desk

    reference.save(tmp_path / "r.json")
    named = argparse.Namespace(weights=str(weights), tokenizer=None, reference=tmp_path / "r.json", device=None)
    assert open_desk(named).known == tuple(ASKED.values())
    named.reference = None
    assert open_desk(named).known == ()
