"""Whether an image looks like an upright frontal chest radiograph: a small model of hand-made statistics.

It looks at the image alone, needs no weights, and takes about two milliseconds. `benchmarks/fit_guard.py` fits its
coefficients, in `frontal.json`, and measures it; docs/scores.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE, EDGE, GRID = 64, 6, 8
COEFFICIENTS = Path(__file__).with_name("frontal.json")

Grey = "NDArray[np.uint8]"
#: What went wrong -> what undoes it. A flagged image that passes once undone is said to look so.
UNDO: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "inverted (bones dark)": lambda grey: 255 - grey,
    "upside down": lambda grey: np.rot90(grey, 2),
    "turned by 90 degrees counter-clockwise": lambda grey: np.rot90(grey, -1),
    "turned by 90 degrees clockwise": lambda grey: np.rot90(grey),
}
UNLIKE = "unlike a frontal chest radiograph"


@dataclass(frozen=True)
class Verdict:
    """What the guard says of one image.

    Args:
        frontal: it looks like an upright frontal chest radiograph.
        score: log-odds above the threshold; positive where it does not.
        looks: empty where it does; else what it looks like instead: one of `UNDO`, or `UNLIKE`.
    """

    frontal: bool
    score: float
    looks: str = ""

    def sentence(self, image: str) -> str:
        """The warning for an image of this name."""
        return f"{image} looks {self.looks}: its scores may mean nothing."


@dataclass(frozen=True)
class FrontalGuard:
    """Tells upright frontal chest radiographs from other images: ``FrontalGuard.load()(grey) -> Verdict``.

    *Equivalent to*, with f the `statistics` of the image::

        distance = log((f - mean)^T whiten whiten^T (f - mean))       # how unusual f is among frontal radiographs
        score = f @ weights[:-1] + distance * weights[-1] - threshold

    Args:
        mean: float64 [S] of frontal radiographs.
        whiten: float64 [S, S], lower triangular: the Cholesky factor of their inverse covariance.
        weights: float64 [S + 1] of a logistic regression against other images.
        threshold: log-odds from which on an image is flagged.
    """

    mean: NDArray[np.float64]
    whiten: NDArray[np.float64]
    weights: NDArray[np.float64]
    threshold: float

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> FrontalGuard:
        """The guard with the coefficients of this package."""
        stored = json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
        size = len(stored["mean"])
        whiten = np.zeros((size, size))
        whiten[np.tril_indices(size)] = stored["whiten"]
        return cls(np.array(stored["mean"]), whiten, np.array(stored["weights"]), float(stored["threshold"]))

    def score(self, grey: NDArray[np.uint8]) -> float:
        """Log-odds above the threshold of one grey image, uint8 [H, W]."""
        return float(self.scores(statistics(grey)[None])[0])

    def scores(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds above the threshold of N rows of `statistics`, [N, S] -> [N]."""
        return self.inputs(table) @ self.weights - self.threshold

    def inputs(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The statistics and the log of their distance from frontal radiographs, [N, S] -> [N, S + 1]."""
        distance = np.square((table - self.mean) @ self.whiten).sum(1)
        return np.column_stack([table, np.log(np.maximum(distance, 1e-12))])

    def __call__(self, grey: NDArray[np.uint8]) -> Verdict:
        """The verdict on one grey image, uint8 [H, W], at any size and proportion."""
        small = shrink(grey)
        score = self.score(small)
        if score <= 0:
            return Verdict(True, score)
        undone = {looks: self.score(undo(small)) for looks, undo in UNDO.items()}
        best = min(undone, key=lambda looks: undone[looks])
        return Verdict(False, score, best if undone[best] <= 0 else UNLIKE)


def shrink(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image at SIDE x SIDE, whatever its proportion."""
    if grey.shape == (SIDE, SIDE):
        return grey
    return np.asarray(cv2.resize(np.ascontiguousarray(grey), (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def statistics(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The 42 figures that the guard judges by, float64.

    Of the image at 64 x 64, its middle spread from its 5th to its 95th percentile: 32 means of an 8 x 8 grid averaged
    with its mirror image, less their mean (lungs dark beside a bright middle, a bright belly below); the logarithms of
    4 differences between left and right, from top to bottom; of the contrast at 4 scales; of the ratio of vertical to
    horizontal edges; and the correlation with the mirror image.
    """
    small = shrink(grey).astype(np.float32)
    middle = slice(EDGE, SIDE - EDGE)
    low, high = np.percentile(small[middle, middle], [5, 95])
    level = np.clip((small - low) / max(high - low, 8.0), -0.3, 1.3).astype(np.float32)
    grid = cv2.resize(level, (GRID, GRID), interpolation=cv2.INTER_AREA)
    half = GRID // 2
    even, odd = (grid + grid[:, ::-1])[:, :half] / 2, (grid - grid[:, ::-1])[:, :half] / 2
    figures = [*(even - even.mean()).ravel()]
    figures += [_log(np.sqrt(np.square(odd[row : row + 2]).mean())) for row in range(0, GRID, 2)]
    inner = np.ascontiguousarray(level[middle, middle])
    finer = inner
    for sigma in (1, 2, 4, 8):
        blurred = cv2.GaussianBlur(inner, (0, 0), sigma)
        figures.append(_log((finer - blurred).std()))
        finer = blurred
    down, across = np.gradient(cv2.GaussianBlur(inner, (0, 0), 1.5))
    figures.append(_log(np.abs(down).mean()) - _log(np.abs(across).mean()))
    mirrored = inner[:, ::-1]
    centred = inner - inner.mean()
    alike = float((centred * mirrored).sum()) / max(float(np.square(centred).sum()), 1e-6)
    figures.append(np.arctanh(np.clip(alike, -0.99, 0.99)))
    return np.array(figures, np.float64)


def _log(value: float) -> float:
    return float(np.log(1e-3 + value))
