"""From an image to the model's input, bit for bit as the published preprocessing does it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from carzero.data.augmentation import Augmentation
from carzero.data.decode import ImageSource, describe_source, image_error, read_grey
from carzero.data.geometry import ImageGeometry
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Augmentation", "ImageGeometry", "ImageProcessor"]

#: Mean and standard deviation that the published model was trained with, of grey values in 0..1.
MEAN, STD = 0.4978, 0.2449


@dataclass(frozen=True)
class ImageProcessor:
    """Turns a radiograph into the model's input: ``ImageProcessor()(image) -> float32 [3, size, size]``.

    *Equivalent to* (for size 224; a larger model keeps the ratio, so the crop hides the same 6 % at each edge)::

        grey = cv2.imread(path, cv2.IMREAD_GRAYSCALE)                     # uint8 [H, W]
        grey = cv2.resize(grey, longest side 256, short side truncated, interpolation=cv2.INTER_AREA)
        grey = zero-pad to 256 x 256, floor half left and top, ceil half right and bottom
        pixels = (torch.from_numpy(grey[16:240, 16:240]) / 255 - 0.4978) / 0.2449, three equal channels

    Deeper images come down to 8 bits first, by dropping low bits. The published code takes 16-bit values to fill 16
    bits, which turns 12-bit radiographs in 16-bit files black; here `bits` says how many bits they fill.

    Args:
        size: side of the model's input in pixels.
        bits: bits that integer values beyond 8-bit fill (16: as published); None: the fewest of 8, 10, 12, 14 and 16
            that hold the image's maximum.

    Source: preprocessing of the published inference code; see docs/fidelity.md.
    """

    size: int = 224
    bits: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise UserError(f"ImageProcessor: size must be a positive int, got {self.size!r}.")
        if self.bits is not None and not (isinstance(self.bits, int) and 8 <= self.bits <= 16):
            raise UserError(f"ImageProcessor: bits must be None or an int from 8 to 16, got {self.bits!r}.")

    @property
    def side(self) -> int:
        """Side of the padded square that the input is cropped from: 256 for 224, even margins for every size."""
        return self.size + 2 * round(self.size / 14)

    def __call__(self, image: ImageSource) -> torch.Tensor:
        """The model's input.

        Args:
            image: path of a PNG, JPEG or DICOM file, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or
                [H, W, 4] (RGBA; alpha is ignored) of bool, integers, or floats in 0..1 or 0..255.
        Returns:
            float32 [3, size, size], contiguous.
        Raises:
            ImageError: (a `UserError`) not an image, empty, cut short, too small or too large; the sentence names it.
        """
        return self._crop(self.square(image)[0])

    def prepare(self, grey: NDArray[np.uint8]) -> torch.Tensor:
        """The model's input of what `read` returned, for whoever needs both; float32 [3, size, size]."""
        return self._crop(self._square(grey, _described(*grey.shape))[0])

    def augmented(self, image: ImageSource, augmentation: Augmentation, rng: np.random.Generator) -> torch.Tensor:
        """A training view of the image, float32 [3, size, size]; equal generators give equal views."""
        square, _ = self.square(image)
        return self.normalize(augmentation(square, self.size, rng))

    def square(self, image: ImageSource) -> tuple[NDArray[np.uint8], ImageGeometry]:
        """The resized, zero-padded square, uint8 [side, side], and how its pixels lie on the original."""
        return self._square(self.read(image), describe_source(image))

    def _square(self, grey: NDArray[np.uint8], source: str) -> tuple[NDArray[np.uint8], ImageGeometry]:
        geometry = self._fit(grey.shape[0], grey.shape[1], source)
        resized = cv2.resize(grey, (geometry.resized_width, geometry.resized_height), interpolation=cv2.INTER_AREA)
        square = np.zeros((self.side, self.side), np.uint8)
        top, left = geometry.top, geometry.left
        square[top : top + geometry.resized_height, left : left + geometry.resized_width] = resized
        return square, geometry

    def _crop(self, square: NDArray[np.uint8]) -> torch.Tensor:
        low = (self.side - self.size) // 2
        return self.normalize(square[low : low + self.size, low : low + self.size])

    def read(self, image: ImageSource) -> NDArray[np.uint8]:
        """The image as 8-bit grey [H, W], upright, at its own size."""
        return read_grey(image, self.bits)

    def geometry(self, height: int, width: int) -> ImageGeometry:
        """How the model's input lies on an image of this size (of `read`'s result)."""
        return self._fit(height, width, _described(height, width))

    def normalize(self, grey: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 [size, size] -> float32 [3, size, size]: /255, minus the mean, over the standard deviation."""
        values = _normalized_levels()[grey]
        return torch.from_numpy(np.broadcast_to(values, (3, *values.shape)).copy())

    def normalize_batch(self, grey: torch.Tensor) -> torch.Tensor:
        """uint8 [B, size, size] -> float32 [B, 3, size, size] on the same device, the numbers of `normalize`.

        A twelfth of the bytes travels from reading processes and to the device when the levels are looked up there.
        """
        levels = torch.from_numpy(_normalized_levels()).to(grey.device)
        return levels[grey.long()].unsqueeze(1).repeat(1, 3, 1, 1)

    def _fit(self, height: int, width: int, source: str) -> ImageGeometry:
        # The published code's own float arithmetic: 256 / longest first, then times the short side, truncated.
        ratio = self.side / float(max(height, width))
        resized_height, resized_width = (
            (self.side, int(float(width) * ratio)) if height >= width else (int(float(height) * ratio), self.side)
        )
        if min(resized_height, resized_width) < 1:
            raise image_error(source, f"is {width} x {height} pixels, too narrow to be resized to {self.side}")
        return ImageGeometry(height, width, resized_height, resized_width, self.side, self.size)


def _described(height: int, width: int) -> str:
    return f"an image of {width} x {height} pixels"


@lru_cache(maxsize=1)
def _normalized_levels() -> NDArray[np.float32]:
    levels = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255)
    return ((levels - torch.tensor(MEAN)) / torch.tensor(STD)).numpy()
