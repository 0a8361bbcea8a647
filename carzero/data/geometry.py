"""Where a pixel of the model's input lies on the original image, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageGeometry:
    """Resize, zero-pad and centre crop as coordinates; made by `ImageProcessor.geometry`.

    Coordinates are continuous (x to the right, y down): pixel (i, j) covers [i, i + 1) x [j, j + 1), its centre is
    (i + 0.5, j + 0.5).

    Args:
        height, width: of the original image.
        resized_height, resized_width: after resizing, before padding.
        side: of the padded square.
        size: of the centre crop, the model's input.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    side: int
    size: int

    @property
    def top(self) -> int:
        """Rows of padding above the resized image."""
        return (self.side - self.resized_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding left of the resized image."""
        return (self.side - self.resized_width) // 2

    @property
    def margin(self) -> int:
        """Pixels that the crop hides at each edge of the square."""
        return (self.side - self.size) // 2

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """A point of the original in the model's input; outside 0..size where the crop hides it."""
        return (
            x * self.resized_width / self.width + self.left - self.margin,
            y * self.resized_height / self.height + self.top - self.margin,
        )

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """A point of the model's input on the original; outside 0..width, 0..height in the padding."""
        return (
            (x + self.margin - self.left) * self.width / self.resized_width,
            (y + self.margin - self.top) * self.height / self.resized_height,
        )

    def map_to_original(
        self, values: NDArray[np.floating], fill: float = 0.0, *, smooth: bool = True
    ) -> NDArray[np.float32]:
        """Lay a map of the model's input over the original: un-crop, un-pad, bilinear in between.

        Args:
            values: [..., h, w] of any grid that covers the input, such as 14 x 14 patches or size x size pixels.
            fill: value where the crop hid the original.
            smooth: False gives every pixel the value of the cell that it lies in, without anything in between.
        Returns:
            float32 [..., height, width].
        """
        values = np.asarray(values, np.float32)
        rows, seen_rows = self._weights(self.height, self.resized_height, self.top, values.shape[-2], smooth)
        columns, seen_columns = self._weights(self.width, self.resized_width, self.left, values.shape[-1], smooth)
        mapped = rows @ values @ columns.T
        return np.where(seen_rows[:, None] & seen_columns[None, :], mapped, np.float32(fill))

    def _weights(
        self, original: int, resized: int, pad: int, cells: int, smooth: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """[original, cells] weights of one axis, and which of its pixels the crop kept."""
        centres = (np.arange(original) + 0.5) * resized / original + pad - self.margin
        seen = (centres >= 0) & (centres < self.size)
        position = np.clip(centres * cells / self.size - 0.5, 0, cells - 1)
        if not smooth:
            position = np.floor(np.clip(centres * cells / self.size, 0, cells - 1))
        low = np.minimum(position.astype(np.int64), max(cells - 2, 0))
        weights = np.zeros((original, cells), np.float32)
        pixel = np.arange(original)
        weights[pixel, np.minimum(low + 1, cells - 1)] = position - low
        weights[pixel, low] += 1 - (position - low)
        return weights, seen
