"""`carzero explain`: pictures, names, exit codes and sentences."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.models.checkpoint import load
from carzero.zeroshot.explain import Explainer
from carzero.zeroshot.words import attend_words


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a b.jpg"):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8))
    return folder


def explain(*arguments):
    return main(["explain", *map(str, arguments)])


def pictures(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_picture_for_every_image_and_class(weights, images, tmp_path, capsys):
    out = tmp_path / "new" / "maps"
    assert explain(images, "--classes", "Effusion,Lung mass", "--weights", weights, "--out", out) == 0
    assert pictures(out) == [
        "b.png.Effusion.png", "b.png.Lung_mass.png", "sub_a_b.jpg.Effusion.png", "sub_a_b.jpg.Lung_mass.png"
    ]  # fmt: skip
    for path in out.glob("*.png"):
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 10
    assert "4 pictures of 2 images x 2 classes. Not a medical device." in capsys.readouterr().out


def test_an_unreadable_image_is_named_and_the_rest_explained(weights, images, tmp_path, capsys):
    (images / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    assert explain(images, "--classes", "Mass", "--weights", weights, "--out", tmp_path / "maps") == 1
    assert pictures(tmp_path / "maps") == ["b.png.Mass.png", "sub_a_b.jpg.Mass.png"]
    said = capsys.readouterr()
    assert "c.png" in said.err
    assert "Traceback" not in said.err


def test_first_prompt_of_each_class_of_a_file(weights, images, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"effusion": ["there is effusion", "there is left effusion"]}')
    assert explain(images / "b.png", "--prompts", prompts, "--weights", weights, "--out", tmp_path / "maps") == 0
    assert pictures(tmp_path / "maps") == ["b.png.effusion.png"]


def test_names_that_would_be_one_file_get_numbers(weights, images, tmp_path):
    (images / "sub_a b.jpg").write_bytes((images / "sub" / "a b.jpg").read_bytes())
    assert explain(images, "--classes", "Mass", "--weights", weights, "--out", tmp_path / "maps") == 0
    assert pictures(tmp_path / "maps") == ["b.png.Mass.png", "sub_a_b.jpg.Mass.png", "sub_a_b.jpg_2.Mass.png"]


def test_tables_beside_the_pictures(weights, images, tmp_path):
    out = tmp_path / "maps"
    options = ("--words", "--layers", "-1", "--heads", "0,1", "--threshold", "0.9", "--patches", "--pictures", "none")
    assert explain(images, "--classes", "Effusion,Mass", "--weights", weights, "--out", out, *options) == 0
    assert pictures(out) == []
    regions = pd.read_csv(out / "regions.csv")
    expected = Explainer(load(weights), ["There is Effusion"], layers=[-1], heads=[0, 1])(images / "b.png")[0]
    mine = regions[(regions["image"] == "b.png") & (regions["class"] == "Effusion")]
    found = expected.regions(0.9, smooth=False)
    assert len(mine) == len(found)
    np.testing.assert_allclose(mine[["x0", "y0", "x1", "y1"]], [r.box for r in found], atol=0.06)
    np.testing.assert_allclose(mine["share"], [r.share for r in found], atol=1e-6)
    words = pd.read_csv(out / "words.csv")
    mine = words[(words["image"] == "b.png") & (words["class"] == "Effusion")]
    assert mine["word"].tolist() == ["there", "is", "effusion"]
    attended = attend_words(load(weights), images / "b.png", ["There is Effusion"], layers=[-1])[0]
    np.testing.assert_allclose(mine["weight"], attended.weights, atol=1e-6)


def test_maps_are_scored_against_boxes(weights, images, tmp_path, capsys):
    out, model = tmp_path / "maps", load(weights)
    peaks = {n: Explainer(model, ["There is Mass"])(images / n)[0].peak for n in ("b.png", "sub/a b.jpg")}
    rows = ["image,finding,x0,y0,x1,y1"]
    # a box around the one peak, and one away from the other; drawn on images of twice the width and height
    for (name, (x, y)), away in zip(peaks.items(), (0, 1)):
        left = (x + 40) % 80 if away else x
        rows.append(f"{name},MASS,{2 * left - 8},{2 * y - 8},{2 * left + 8},{2 * y + 8}")
    (tmp_path / "boxes.csv").write_text("\n".join([*rows, "other.png,hernia,1,1,2,2"]))
    (tmp_path / "patients.csv").write_text("image,patient\nb.png,1\na b.png,2\n")
    command = (
        images,
        "--classes",
        "Effusion,Mass",
        "--weights",
        weights,
        "--boxes",
        tmp_path / "boxes.csv",
        "--out",
        out,
    )
    assert (
        explain(*command, "--box-size", "160x120", "--patients", tmp_path / "patients.csv", "--pictures", "boxed") == 0
    )
    said = capsys.readouterr()
    assert "boxes without a class of their name: hernia" in said.err
    assert "95 % intervals by patients" in said.out
    assert "Mass: n=2, pointing 0.500 (0.000 to 1.000)" in said.out
    assert pictures(out) == ["b.png.Mass.png", "sub_a_b.jpg.Mass.png"]
    maps = pd.read_csv(out / "maps.csv")
    assert dict(zip(maps["image"], maps["hit"])) == {"b.png": True, "sub/a b.jpg": False}
    table = pd.read_csv(out / "grounding.csv")
    assert table["finding"].tolist() == ["Mass", "mean over findings"]
    assert table["iou 0.5"][0] == pytest.approx(maps["iou 0.5"].mean())


@pytest.mark.data
def test_dicom_lands_on_its_own_pixels(weights, tmp_path, shared_data):
    source = shared_data / "dicom" / "chest" / "xrv_rsna_PA_jpegbaseline_mono2.dcm"
    out = tmp_path / "maps"
    assert explain(source, "--classes", "Effusion", "--weights", weights, "--out", out) == 0
    import pydicom

    header = pydicom.dcmread(source, stop_before_pixels=True)
    regions = pd.read_csv(out / "regions.csv")
    assert regions["x1"].max() > 0.5 * header.Columns
    assert regions["x1"].max() <= header.Columns
    assert regions["y1"].max() <= header.Rows
    # nothing of the header but what the file name says
    known = {str(header.get(name)) for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate")}
    text = (out / "regions.csv").read_text()
    assert not [value for value in known if len(value) > 3 and value in text]


def test_one_sentence_for_each_mistake(weights, images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "boxes.csv").write_text("image,finding,x0,y0,x1,y1\nz.png,mass,1,1,2,2\n")
    boxed = (images, "--classes", "Mass", "--weights", weights, "--out", tmp_path / "maps", "--pictures", "none")
    mistakes = {
        (*boxed, "--boxes", tmp_path / "boxes.csv"): "No image has a box",
        (*boxed, "--boxes", tmp_path / "boxes.csv", "--box-size", "12"): "such as 1024x1024",
        (*boxed, "--boxes", tmp_path / "gone.csv"): "does not exist",
        (*boxed, "--box-size", "12x12"): "belong to --boxes",
        (*boxed, "--layers", "a"): "whole numbers",
        (*boxed, "--heads", "7"): "heads must name some",
        (*boxed, "--threshold", "2"): "share of the maximum",
        (images, "--classes", "A", "--weights", weights, "--out", tmp_path / "file"): "cannot be made",
        (images, "--classes", "A", "--weights", tmp_path / "gone", "--out", tmp_path / "maps"): "gone",
        (tmp_path / "empty", "--classes", "A", "--weights", weights, "--out", tmp_path / "maps"): "empty",
        (images, "--prompts", tmp_path / "no.json", "--weights", weights, "--out", tmp_path / "maps"): "no.json",
    }
    for arguments, words in mistakes.items():
        assert explain(*arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
        assert len(said.strip().splitlines()) == 1
