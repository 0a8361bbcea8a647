"""Scores in parts, by whatever processes and after whatever kill, are those of one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.data.files import list_images
from carzero.errors import UserError
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.parts import merge_parts, score_parts

PROMPTS = {"effusion": ["There is effusion", "Effusion"], "mass": "There is a mass"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(7):
        cv2.imwrite(str(folder / f"{k}.png"), np.random.default_rng(k).integers(0, 256, (64, 64), dtype=np.uint8))
    (folder / "5.txt").write_text("no image")
    return folder


def test_parts_of_three_processes_with_one_killed_are_one_run(images: Path, weights: Path, tmp_path: Path) -> None:
    classifier = ZeroShotClassifier(str(weights), PROMPTS, workers=0)
    whole = classifier.predict(list_images([images]))
    failures = classifier.failures.copy()
    listed, folder = list_images([images]), tmp_path / "parts"
    options = {"weights": str(weights), "size": 3}
    for rank in (2, 0):
        score_parts(classifier, listed, folder, rank=rank, world=3, **options)
    with pytest.raises(UserError, match=r"1 of 3 parts in .* are missing, the first number 1"):
        merge_parts(folder, listed)
    # killed while it wrote its part: the failures are there, the scores half written
    (folder / ".part-00001.parquet.99").write_bytes(b"PAR1")
    pd.DataFrame({"image": ["3.png"], "reason": ["stale"]}).to_parquet(folder / "part-00001.failures.parquet")
    before = (folder / "part-00000.parquet").stat().st_mtime_ns
    # another number of processes goes on
    score_parts(classifier, listed, folder, **options)
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == before
    scores, failed = merge_parts(folder, listed)
    pd.testing.assert_frame_equal(scores, whole, rtol=1e-5)
    pd.testing.assert_frame_equal(failed, failures)
    assert failed["image"].tolist() == ["5.txt"]


def test_other_scores_are_not_mixed_and_counts_are_checked(images: Path, weights: Path, tmp_path: Path) -> None:
    classifier = ZeroShotClassifier(str(weights), PROMPTS, workers=0)
    listed, folder = list_images([images]), tmp_path / "parts"
    score_parts(classifier, listed, folder, weights="a", size=4)
    for changed, sentence in (
        ({"weights": "b", "size": 4}, "weights was 'a' and is now 'b'"),
        ({"weights": "a", "size": 3}, "size was '4' and is now '3'"),
    ):
        with pytest.raises(UserError, match=sentence):
            score_parts(classifier, listed, folder, **changed)
    with pytest.raises(UserError, match="images was '8' and is now '7'"):
        score_parts(classifier, listed[1:], folder, weights="a", size=4)
    part = folder / "part-00001.parquet"
    pd.read_parquet(part).iloc[1:].to_parquet(part)
    with pytest.raises(UserError, match="hold 7 images and the list has 8"):
        merge_parts(folder, listed)


def test_command_alone_and_on_two_processes_writes_the_same_table(images: Path, weights: Path, tmp_path: Path) -> None:
    words = [str(images), "--classes", "effusion,mass", "--weights", str(weights), "--workers", "0"]
    alone, parts = tmp_path / "alone.csv", tmp_path / "parts.csv"
    # exit code 1: one file is no image
    assert main(["classify", *words, "--out", str(alone)]) == 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "carzero"]
    words += ["--out", str(parts), "--parts", str(tmp_path / "p"), "--part-size", "3"]
    done = subprocess.run(
        [*command, "classify", *words],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "3 images, " in done.stderr, done.stderr[-3000:]
    pd.testing.assert_frame_equal(pd.read_csv(parts), pd.read_csv(alone), rtol=1e-5)
    assert pd.read_csv(tmp_path / "parts.failures.csv")["image"].tolist() == ["5.txt"]


def test_wrong_combinations_are_sentences(images: Path, weights: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    words = ["classify", str(images), "--classes", "mass", "--weights", str(weights), "--out", str(tmp_path / "s.csv")]
    assert main([*words, "--parts", str(tmp_path / "p"), "--strict"]) == 2
    assert "--parts lists the images that cannot be read: leave --strict out" in capsys.readouterr().err
    assert main([*words, "--parts", str(tmp_path / "p"), "--part-size", "0"]) == 2
    assert "--part-size must be at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert "give --parts FOLDER" in capsys.readouterr().err


def test_a_manifest_names_the_images(images: Path, weights: Path, tmp_path: Path, capsys) -> None:
    table = tmp_path / "images.csv"
    # an image with two texts is scored once; another column does not matter
    table.write_text("image,split,note\nimages/4.png,a,x\nimages/0.png,a,y\nimages/4.png,a,z\nimages/1.png,b,\n")
    words = ["--classes", "effusion,mass", "--weights", str(weights), "--workers", "0"]
    out, whole = tmp_path / "s.csv", tmp_path / "w.csv"
    assert main(["classify", "--manifest", str(table), "--split", "a", *words, "--out", str(out)]) == 0
    assert main(["classify", str(images), *words, "--out", str(whole)]) == 1
    want = pd.read_csv(whole).set_index("image")
    got = pd.read_csv(out).set_index("image")
    assert got.index.tolist() == ["images/4.png", "images/0.png"]
    np.testing.assert_allclose(got.to_numpy(), want.loc[["4.png", "0.png"]].to_numpy(), rtol=1e-5)
    parts = ["--parts", str(tmp_path / "p"), "--part-size", "2"]
    assert main(["classify", "--manifest", str(table), *words, *parts, "--out", str(out)]) == 0
    assert pd.read_csv(out)["image"].tolist() == ["images/4.png", "images/0.png", "images/1.png"]
    capsys.readouterr()
    for wrong, sentence in (
        (["--manifest", str(table), str(images)], "Name either images and folders, or a table"),
        ([], "Name either images and folders, or a table"),
        ([str(images), "--split", "a"], "--split goes with --manifest"),
        (["--manifest", str(table), "--split", "c"], "has no row of split 'c'; it has a, b"),
    ):
        assert main(["classify", *wrong, *words, "--out", str(out)]) == 2
        assert sentence in capsys.readouterr().err
    table.write_text("image\nimages/0.png\nimages/absent.png\n")
    assert main(["classify", "--manifest", str(table), *words, "--out", str(out)]) == 2
    assert "names 1 of 2 images that do not exist" in capsys.readouterr().err
