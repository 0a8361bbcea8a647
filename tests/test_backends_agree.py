"""benchmarks/backends_agree.py on drawn radiographs, and that it would notice a backend that ranks otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest
import torch

from carzero.data.phantom import draw
from carzero.models.carzero import CARZero

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import backends_agree


@pytest.fixture
def arguments(tmp_path: Path, weights: Path) -> list[str]:
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), draw(index, size=64).image)
    return ["--images", str(tmp_path), "--weights", str(weights), "--classes", "effusion,mass"]


def test_backends_rank_alike(arguments: list[str], capsys) -> None:
    assert backends_agree.main(arguments) == 0
    out = capsys.readouterr().out
    assert "5 images x 2 classes on " in out
    assert "| torch | " in out


def test_another_order_is_noticed(arguments: list[str], monkeypatch, capsys) -> None:
    plain = CARZero.similarity

    def turned(self, *positional, backend: str = "auto", **options) -> torch.Tensor:
        scores = plain(self, *positional, backend=backend, **options)
        return -scores if backend == "torch" else scores

    monkeypatch.setattr(CARZero, "similarity", turned)
    assert backends_agree.main(arguments) == 1
    # all pairs of 5 images, for both classes
    assert "20 pairs of images further apart" in capsys.readouterr().out
