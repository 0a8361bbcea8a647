"""`carzero calibrate`, and the columns that `carzero classify` adds with what it wrote."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.data.phantom import draw
from carzero.zeroshot.reference import ScoreReference


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiographs")
    for index in range(30):
        cv2.imwrite(str(folder / f"{index:02d}.png"), draw(index, size=64).image)
    return folder


@pytest.fixture
def model(weights, tmp_path):
    """A copy, for the command writes into the folder."""
    return shutil.copytree(weights, tmp_path / "model")


def run(*arguments):
    return main([str(a) for a in arguments])


PROMPTS = ("--classes", "Effusion,Mass")


def labels(images, path, **columns):
    names = sorted(p.name for p in images.iterdir())
    pd.DataFrame({"image": names, **columns}).to_csv(path, index=False)
    return path


def test_quantiles_need_no_labels(model, images, tmp_path, capsys):
    assert run("calibrate", images, *PROMPTS, "--weights", model) == 0
    assert "reference of 30 images x 2 classes, 0 calibrated" in capsys.readouterr().out
    out = tmp_path / "scores.csv"
    assert run("classify", images, *PROMPTS, "--weights", model, "--out", out, "--add", "quantile,guard") == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table.columns) == ["image", "Effusion", "Mass", "Effusion quantile", "Mass quantile", "guard"]
    rank = table["Mass"].rank(method="average").to_numpy()
    np.testing.assert_allclose(table["Mass quantile"], (rank - 0.5) / 30, atol=1e-9)
    assert (table["guard"] == "").sum() >= 28
    # asked for nothing, the table is as it always was
    assert run("classify", images, "--classes", "Mass", "--weights", model, "--out", out) == 0
    assert list(pd.read_csv(out).columns) == ["image", "Mass"]


def test_the_guard_speaks_by_itself(model, images, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    good = cv2.imread(str(images / "00.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "<script>.png"), np.ascontiguousarray(good[::-1, ::-1]))
    cv2.imwrite(str(folder / "fine.png"), good)
    out = tmp_path / "scores.csv"
    assert run("classify", folder, "--classes", "Mass", "--weights", model, "--out", out, "--add", "guard") == 0
    assert "warning: <script>.png looks upside down: its scores may mean nothing." in capsys.readouterr().err
    assert pd.read_csv(out, keep_default_na=False)["guard"].tolist() == ["upside down", ""]


def test_probabilities_with_their_error(model, images, tmp_path, capsys):
    patient = [f"p{i // 2}" for i in range(30)]
    path = labels(images, tmp_path / "labels.csv", patient=patient, Mass=[0, 0, 1] * 10, Effusion=[1] + [0] * 29)
    (tmp_path / "more").mkdir()
    for image in images.iterdir():
        shutil.copy(image, tmp_path / "more")
    # an image that cannot be read costs its own row and no more
    (tmp_path / "more" / "07.png").write_bytes(b"no image")
    assert run("calibrate", tmp_path / "more", *PROMPTS, "--weights", model, "--labels", path) == 1
    said = capsys.readouterr()
    assert "reference of 29 images x 2 classes, 1 calibrated" in said.out
    assert "Mass: 10 of 29 images, 15 patients; on patients not fitted on: Brier score" in said.out
    assert "A calibration of 'Effusion' needs 10 images with it and 10 without, got 1 and 28." in said.err
    stored = ScoreReference.load(model / "scores.json")
    assert stored.calibrations["Mass"].method == "platt"
    out = tmp_path / "scores.csv"
    columns = ("--add", "probability")
    assert run("classify", images, *PROMPTS, "--weights", model, "--out", out, *columns) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["image", "Effusion", "Mass", "Mass probability"]
    np.testing.assert_allclose(table["Mass probability"], stored.probability("Mass", table["Mass"]), atol=1e-6)


def test_one_sentence_for_each_mistake(model, images, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    classify = ("classify", images, *PROMPTS, "--weights", model, "--out", out)
    wrong = labels(images, tmp_path / "wrong.csv", Nodule=[0, 1] * 15)
    short = tmp_path / "short.csv"
    short.write_text("image,Mass\n00.png,1\n")
    calibrate = ("calibrate", images, *PROMPTS, "--weights", model)
    mistakes = {
        (*classify, "--add", "quantile"): "There is no reference of scores",
        (*classify, "--add", "percent"): "--add knows quantile, probability, guard, not 'percent'",
        (*classify, "--reference", "x.json"): "which was not asked for",
        (*calibrate, "--labels", wrong): "has no column of any of the classes; it has Nodule",
        (*calibrate, "--labels", short): "29 images have no row in",
        (*calibrate, "--out", tmp_path / "gone" / "a.json"): "there is no folder",
        ("calibrate", images, *PROMPTS, "--weights", "some/model"): "name the file to write with --out",
    }
    for arguments, words in mistakes.items():
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
        assert not out.exists()
    assert run(*calibrate) == 0
    capsys.readouterr()
    # the same reference beside other prompts
    stored = json.loads((model / "scores.json").read_text())
    stored["prompts"]["Mass"] = ["a mass"]
    (model / "scores.json").write_text(json.dumps(stored))
    assert run(*classify, "--add", "quantile") == 2
    assert "asked for 'Mass' with other prompts" in capsys.readouterr().err
