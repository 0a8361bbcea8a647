"""A manifest of a dozen small images with reports, and a run of six steps on it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from carzero.models.config import CARZeroConfig
from carzero.train.config import TrainConfig, Validation

REPORTS = (
    "There is a left effusion. There is no nodule.",
    "There is a nodule.",
    "No effusion is seen. There is no nodule.",
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """CSV with 12 images of random grey blocks."""
    random = np.random.default_rng(0)
    lines = ["image,text"]
    for k in range(12):
        blocks = random.integers(0, 255, (6, 5), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{k}.png"), cv2.resize(blocks, (50, 60), interpolation=cv2.INTER_CUBIC))
        lines.append(f"{k}.png,{REPORTS[k % 3]}")
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def config(manifest: Path, tmp_path: Path) -> TrainConfig:
    """Six steps of a model of width 32, dropout included."""
    model = CARZeroConfig.tiny(width=32, depth=1, heads=2, layers=2, image_size=32, dropout=0.1)
    path = tmp_path / "model.json"
    path.write_text(model.to_json(), encoding="utf-8")
    return TrainConfig(
        manifest=str(manifest), out=str(tmp_path / "run"), model=str(path), steps=6, batch_size=5, learning_rate=1e-3,
        device="cpu", augment="affine", positives="report", text="some",
    )  # fmt: skip


@pytest.fixture
def labelled(manifest: Path) -> Validation:
    """Labels of two classes for the dozen images, one cell empty, every second step."""
    lines = ["image,effusion,nodule"]
    lines += [f"{k}.png,{k % 2},{'' if k == 5 else int(k % 3 == 0)}" for k in range(12)]
    (manifest.parent / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prompts = '{"effusion": ["There is effusion", "Effusion"], "nodule": "There is a nodule"}'
    (manifest.parent / "prompts.json").write_text(prompts, encoding="utf-8")
    return Validation(str(manifest.parent / "labels.csv"), str(manifest.parent / "prompts.json"), every=2, batch_size=5)
