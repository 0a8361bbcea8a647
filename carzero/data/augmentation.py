"""The published training augmentation, driven by a numpy generator so that a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip, affine, brightness and contrast of a padded grey square.

    The defaults are the published recipe. A flip swaps left and right while the report keeps saying left or right, so
    set ``flip=0`` for texts that name sides. Other than the published code, the affine step interpolates bilinearly
    (not to the nearest pixel).

    Args:
        flip: probability of a left-right flip.
        degrees: rotation, uniform in -degrees..degrees.
        translate: shift, uniform in -translate..translate of the side, for x and y.
        scale: range of the zoom factor.
        brightness: range of the factor on the grey values.
        contrast: range of the factor on the distance from the image's mean.
    """

    flip: float = 0.3
    degrees: float = 30.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.8, 1.2)
    contrast: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise UserError(f"Augmentation: flip must be a probability in 0..1, got {self.flip}.")
        for name in ("degrees", "translate"):
            if getattr(self, name) < 0:
                raise UserError(f"Augmentation: {name} must not be negative, got {getattr(self, name)}.")
        for name in ("scale", "brightness", "contrast"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"Augmentation: {name} must be a range 0 < low <= high, got ({low}, {high}).")

    def __call__(self, square: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One random view.

        Args:
            square: uint8 [side, side], as `ImageProcessor.square` gives it.
            size: side of the random crop.
            rng: generator; always the same number of draws a call, so options do not shift each other's values.
        Returns:
            uint8 [size, size].
        """
        draw = rng.random(10)
        spare = square.shape[0] - size
        top, left = int(draw[0] * (spare + 1)), int(draw[1] * (spare + 1))
        view = square[top : top + size, left : left + size]
        if draw[2] < self.flip:
            view = view[:, ::-1]
        view = self._affine(np.ascontiguousarray(view), draw[3:7])
        steps = [self._brighten, self._stretch] if draw[9] < 0.5 else [self._stretch, self._brighten]
        for step in steps:
            view = step(view, draw[7] if step == self._brighten else draw[8])
        return view

    def _affine(self, view: NDArray[np.uint8], draw: NDArray[np.float64]) -> NDArray[np.uint8]:
        size = view.shape[0]
        angle = (2 * draw[0] - 1) * self.degrees
        centre = ((size - 1) / 2, (size - 1) / 2)
        matrix = cv2.getRotationMatrix2D(centre, angle, _between(self.scale, draw[3]))
        matrix[:, 2] += (2 * draw[1:3] - 1) * self.translate * size
        return np.asarray(cv2.warpAffine(view, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)

    def _brighten(self, view: NDArray[np.uint8], draw: float) -> NDArray[np.uint8]:
        return _to_uint8(view * np.float32(_between(self.brightness, draw)))

    def _stretch(self, view: NDArray[np.uint8], draw: float) -> NDArray[np.uint8]:
        mean = np.float32(round(float(view.mean())))
        return _to_uint8((view - mean) * np.float32(_between(self.contrast, draw)) + mean)


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(draw)


def _to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)
