"""A manifest of a dozen small images with reports."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

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
