"""`carzero classify`: tables, exit codes and sentences."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from carzero.cli import main
from carzero.zeroshot import command
from carzero.zeroshot.classify import ZeroShotClassifier, choose_dtype


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "sub/a.png"):
        grey = np.random.default_rng(len(name)).integers(0, 256, (60, 80), dtype=np.uint8)
        cv2.imwrite(str(folder / name), grey)
    return folder


def classify(*arguments):
    return main(["classify", *map(str, arguments)])


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "images")


def test_a_folder_becomes_a_table(weights, images, tmp_path, capsys):
    out = tmp_path / "new" / "scores.csv"
    assert classify(images, "--classes", "Effusion, Mass", "--weights", weights, "--out", out) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["image", "Effusion", "Mass"]
    assert table["image"].tolist() == ["a.jpg", "b.png", "sub/a.png"]
    prompts = {"Effusion": "There is Effusion", "Mass": "There is Mass"}
    expected = ZeroShotClassifier(weights, prompts).predict(images)
    # written with every digit of a float32
    assert np.array_equal(table.iloc[:, 1:].to_numpy(np.float32), expected.iloc[:, 1:].to_numpy())
    assert left_in(out.parent) == ["scores.csv"]
    said = capsys.readouterr()
    assert said.out.count("not probabilities") == 1
    dtype, _ = choose_dtype(torch.device("cpu"))
    for word in ("backend: ", f"dtype: {str(dtype).removeprefix('torch.')} (", "device: cpu (", "workers: 0 ("):
        assert said.err.count(word) == 1


def test_prompt_files_templates_and_pooling(weights, images, tmp_path):
    prompts = tmp_path / "p.json"
    prompts.write_text(json.dumps({"Effusion": ["There is effusion", "left effusion"], "Mass": "mass"}))
    tables = {}
    for pool in ("mean", "max"):
        out = tmp_path / f"{pool}.csv"
        assert classify(images, "--prompts", prompts, "--weights", weights, "--out", out, "--pool", pool) == 0
        tables[pool] = pd.read_csv(out)
    each = tmp_path / "each.csv"
    lines = tmp_path / "p.txt"
    lines.write_text("There is effusion\nleft effusion\n")
    assert classify(images, "--prompts", lines, "--weights", weights, "--out", each) == 0
    both = pd.read_csv(each)[["There is effusion", "left effusion"]]
    assert np.allclose(tables["mean"]["Effusion"], both.mean(axis=1), atol=1e-6)
    assert np.allclose(tables["max"]["Effusion"], both.max(axis=1), atol=1e-6)
    template = tmp_path / "template.csv"
    arguments = ("--classes", "effusion", "--template", "left {finding}", "--weights", weights, "--out", template)
    assert classify(images, *arguments) == 0
    assert np.allclose(pd.read_csv(template)["effusion"], both["left effusion"], atol=1e-6)


def test_failures_are_tabled_beside_the_scores_and_the_exit_code_is_1(weights, images, tmp_path, capsys):
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:300])
    (images / "notes.txt").write_text("patients")
    out = tmp_path / "scores.csv"
    arguments = (images, "--classes", "Mass", "--weights", weights, "--out", out)
    assert classify(*arguments) == 1
    assert pd.read_csv(out)["image"].tolist() == ["a.jpg", "sub/a.png"]
    failures = pd.read_csv(tmp_path / "scores.failures.csv")
    assert failures["image"].tolist() == ["b.png", "notes.txt"]
    assert failures["reason"].str.contains("cut short|not a PNG").all()
    said = capsys.readouterr().err
    assert "2 images could not be scored" in said
    assert "b.png" in said
    assert "notes.txt" in said
    # a later run without failures does not leave the old list behind
    (images / "b.png").unlink()
    (images / "notes.txt").unlink()
    assert classify(*arguments) == 0
    assert left_in(tmp_path) == ["scores.csv"]


def test_strict_stops_and_writes_nothing(weights, images, tmp_path, capsys):
    (images / "b.png").write_bytes(b"")
    out = tmp_path / "scores.csv"
    assert classify(images, "--classes", "Mass", "--weights", weights, "--out", out, "--strict") == 1
    assert left_in(tmp_path) == []
    assert "b.png is empty" in capsys.readouterr().err


def test_an_interruption_leaves_the_old_table_and_nothing_else(weights, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scores.csv"
    out.write_text("old")
    arguments = (images, "--classes", "Mass", "--weights", weights, "--out", out)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ZeroShotClassifier, "score", interrupted)
        assert classify(*arguments) == 130
    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", interrupted)
        assert classify(*arguments) == 130
    assert left_in(tmp_path) == ["scores.csv"]
    assert out.read_text() == "old"
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_leaves_the_old_table(weights, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scores.csv"
    out.write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    assert classify(images, "--classes", "Mass", "--weights", weights, "--out", out) == 2
    assert left_in(tmp_path) == ["scores.csv"]
    assert "cannot be written: No space left on device" in capsys.readouterr().err


def test_wrong_input_is_one_sentence_and_exit_code_2(weights, images, tmp_path, capsys):
    empty, bad, here = tmp_path / "empty", tmp_path / "p.csv", tmp_path / "file"
    empty.mkdir()
    bad.write_text("class,prompt\nA,there is a\nB,\n")
    here.write_text("")
    out = tmp_path / "scores.csv"
    mass = ("--classes", "Mass")
    cases = [
        ([empty, *mass, "--weights", weights, "--out", out], "holds no files"),
        ([tmp_path / "no", *mass, "--weights", weights, "--out", out], "There is no file or folder"),
        ([images, "--prompts", bad, "--weights", weights, "--out", out], "line 3: the prompt is empty"),
        ([images, "--prompts", tmp_path / "no.txt", "--weights", weights, "--out", out], "does not exist"),
        ([images, "--classes", " , ", "--weights", weights, "--out", out], "No class was given"),
        ([images, *mass, "--template", "x", "--weights", weights, "--out", out], "must contain {finding}"),
        ([images, *mass, "--weights", tmp_path / "gone", "--out", out], "no folder or file"),
        ([images, *mass, "--weights", empty, "--out", out], str(empty)),
        ([images, *mass, "--weights", weights, "--out", tmp_path / "s.parquet"], "must end in .csv"),
        ([images, *mass, "--weights", weights, "--out", here / "s.csv"], "cannot be written"),
        ([images, *mass, "--weights", weights, "--out", out, "--batch-size", "0"], "batch_size must be at least 1"),
        ([images, *mass, "--weights", weights, "--out", out, "--device", "tpu9"], "device"),
    ]
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    cases.append(([images, *mass, "--weights", weights, "--out", folder], "is a folder"))
    for arguments, sentence in cases:
        assert classify(*arguments) == 2, arguments
        said = capsys.readouterr()
        assert sentence in said.err
        assert "Traceback" not in said.err
        assert said.err.startswith("carzero classify: ")
        assert said.out == ""
        assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_a_table_that_may_not_be_replaced_is_kept(weights, images, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    out.write_text("old")
    out.chmod(0o444)
    assert classify(images, "--classes", "Mass", "--weights", weights, "--out", out) == 2
    assert "may not be written" in capsys.readouterr().err


def test_images_whose_files_hold_markup_are_shown_as_they_are(weights, images, tmp_path, capsys):
    (images / "[red]x.png").write_bytes(b"")
    out = tmp_path / "scores.csv"
    assert classify(images, "--classes", "Mass", "--weights", weights, "--out", out) == 1
    assert "[red]x.png" in capsys.readouterr().err


def test_written_tables_have_the_usual_permissions(tmp_path):
    path = tmp_path / "t.csv"
    command.write_table(pd.DataFrame({"a": [1.5]}), path)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert path.read_text() == "a\n1.5\n"


def test_doubtful_prompts_are_warned_of(weights, images, tmp_path, capsys):
    prompts = tmp_path / "p.json"
    prompts.write_text(json.dumps({"Effusion": "effusion", "Mass": "There is a lung mass"}))
    assert classify(images, "--prompts", prompts, "--weights", weights, "--out", tmp_path / "s.csv") == 0
    assert "warning: class 'Effusion', prompt 'effusion': one word; write a sentence" in capsys.readouterr().err
