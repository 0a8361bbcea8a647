"""What `carzero.train.check` finds in a manifest with one of each fault, and that it says nothing of a sound one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.errors import UserError
from carzero.train.check import check_manifest


def draw(folder: Path, name: str, seed: int) -> str:
    grey = np.random.default_rng(seed).integers(0, 256, (40, 50), dtype=np.uint8)
    assert cv2.imwrite(str(folder / name), grey)
    return name


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    for seed, name in enumerate(["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"]):
        draw(tmp_path, name, seed)
    # e is a copy of d under another name
    draw(tmp_path, "e.png", 3)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:90])
    rows = [
        ("a.png", "There is effusion.", "p1", "s1", "train"),
        ("a.png", "There is effusion.", "p1", "s1", "train"),
        ("a.png", "There is a mass.", "p1", "s1", "test"),
        ("gone.png", "A mass", "p2", "s2", "train"),
        ("broken.png", "A mass", "p3", "s3", "train"),
        ("", "A mass", "p4", "s4", "train"),
        ("b.png", " ", "p5", "s5", "train"),
        ("c.png", "!?", "p6", "s6", "train"),
        ("d.png", "word " * 96, "p7", "s7", "train"),
        ("e.png", "A mass", "p8", "s8", "test"),
        ("f.png", "Normal", "", "", "train"),
    ]
    table = pd.DataFrame(rows, columns=["image", "text", "patient", "study", "split"])
    table.to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv"


FOUND = {
    "rows without an image": 1,
    "images that do not exist": 1,
    "images that cannot be read": 1,
    "empty texts": 1,
    "patients in more than one split": 1,
    "studies in more than one split": 1,
    "texts without a Latin letter or digit": 1,
    "rows that repeat an image with the same text": 2,
    "rows that repeat an image with another text": 1,
    "files with the same pixels under several names": 2,
    "the same pixels in more than one split": 2,
    "texts longer than 95 words, which are cut": 1,
}


@pytest.mark.parametrize("workers", [0, 1])
def test_every_fault_is_found_and_counted(faulty: Path, workers: int) -> None:
    report = check_manifest(faulty, workers=workers)
    assert {f.what: f.count for f in report.findings} == FOUND
    assert not report.sound
    examples = {f.what: f.examples for f in report.findings}
    assert examples["images that do not exist"] == ("row 5: gone.png",)
    assert examples["patients in more than one split"] == ("p1: test and train",)
    assert examples["images that cannot be read"][0].startswith("row 6: broken.png ")
    problems = dict(zip(report.rows["row"], report.rows["problem"]))
    assert problems[2] == (
        "patients in more than one split; studies in more than one split; rows that repeat an image with the same text"
    )
    assert report.facts["rows by split"] == "train 9, test 2"
    assert report.facts["words a text"] == "median 2, 99th percentile 87, longest 96"


def test_a_sound_manifest_and_word_pieces(tmp_path: Path, weights: Path) -> None:
    rows = [(draw(tmp_path, f"{k}.png", k), f"There is mass {k}", f"p{k}") for k in range(3)]
    pd.DataFrame(rows, columns=["image", "text", "patient"]).to_csv(tmp_path / "m.csv", index=False)
    report = check_manifest(tmp_path / "m.csv", tokenizer=str(weights / "tokenizer"), max_tokens=5)
    assert report.sound
    # [CLS] there is mass 0 [SEP]
    assert {f.what: f.count for f in report.findings if f.count} == {
        "texts longer than 5 word pieces, which are cut": 3
    }
    (tmp_path / "n.csv").write_text("image\na.png\n")
    with pytest.raises(UserError, match="lacks the column text"):
        check_manifest(tmp_path / "n.csv")


def test_command_prints_a_table_and_its_exit_code_says_whether_to_go_on(
    faulty: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    listed = faulty.with_name("problems.csv")
    assert main(["data", "check", str(faulty), "--report", str(listed)]) == 1
    printed = capsys.readouterr().out
    assert "not sound: mend the manifest before a run" in printed
    assert "row 5: gone.png" in printed
    assert pd.read_csv(listed)["row"].tolist() == list(range(2, 12))
    assert main(["data", "check", str(faulty), "--no-images"]) == 1
    assert main(["data", "check", str(faulty.with_name("none.csv"))]) == 2
    table = pd.read_csv(faulty).iloc[[0]]
    table.to_csv(faulty, index=False)
    assert main(["data", "check", str(faulty)]) == 0
    assert "sound" in capsys.readouterr().out
