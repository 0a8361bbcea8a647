"""`carzero evaluate` of a model by several processes, killed and gone on with, has the figures of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer


@pytest.fixture
def measured(tmp_path: Path) -> list[str]:
    """Words for `carzero`: nine images with labels, and a model of random weights."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(9):
        cv2.imwrite(str(folder / f"{k}.png"), random.integers(0, 256, (64, 64), dtype=np.uint8))
    labels = pd.DataFrame({"image": [f"{k}.png" for k in range(9)], "mass": [0, 1] * 4 + [0], "edema": [1, 1, 0] * 3})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    tokenizer = word_tokenizer(["there is no mass edema"])
    model = CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer), width=32, heads=2, image_size=32), tokenizer)
    model.save_pretrained(tmp_path / "model")
    return [
        "evaluate", "--weights", str(tmp_path / "model"), "--images", str(folder), "--labels",
        str(tmp_path / "labels.csv"), "--negation", "--resamples", "20", "--json",
    ]  # fmt: skip


def figures(printed: str) -> dict:
    """The JSON object without the settings, which name folders."""
    found = json.loads(printed)
    found.pop("settings")
    return found


def close(got: object, want: object) -> None:
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert got.keys() == want.keys()  # type: ignore[attr-defined]
        for key in want:
            close(got[key], want[key])  # type: ignore[index]
    elif isinstance(want, list):
        for a, b in zip(got, want, strict=True):  # type: ignore[call-overload]
            close(a, b)
    elif isinstance(want, float):
        assert got == pytest.approx(want, abs=1e-5)
    else:
        assert got == want


def test_two_processes_go_on_after_a_kill_with_the_figures_of_one(measured: list[str], tmp_path: Path, capsys) -> None:
    assert main(measured) == 0
    whole = figures(capsys.readouterr().out)
    parts = tmp_path / "parts"
    words = [*measured, "--parts", str(parts), "--part-size", "2"]
    assert main(words) == 0
    close(figures(capsys.readouterr().out), whole)
    # what a kill leaves: two of five parts, a third half written
    for k in (1, 2, 4):
        (parts / f"part-{k:05d}.parquet").unlink()
    (parts / ".part-00002.parquet.7").write_bytes(b"PAR1")
    kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.parquet")}
    assert len(kept) == 2
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "carzero"]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # one process prints
    close(figures(done.stdout), whole)
    assert done.stderr.count("part ") == 3
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
    # scores that went missing are counted
    part = parts / "part-00003.parquet"
    pd.read_parquet(part).iloc[1:].to_parquet(part)
    assert main(words) == 2
    assert "hold 8 images and the list has 9" in capsys.readouterr().err


def test_an_image_that_cannot_be_scored_stops_it(measured: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "images" / "5.png").write_bytes(b"no image")
    parts = tmp_path / "parts"
    assert main([*measured, "--parts", str(parts)]) == 2
    said = capsys.readouterr().err
    assert "1 of 9 images could not be scored: 5.png" in said
    assert f"Mend them and remove {parts}, or leave them out" in said


def test_wrong_combinations_are_sentences(measured: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    drawn = ["evaluate", "--weights", measured[2], "--drawn", "4", "--parts", str(tmp_path / "p")]
    assert main(drawn) == 2
    assert "--parts shares the scoring of images in files" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(measured) == 2
    assert "give --parts FOLDER" in capsys.readouterr().err
