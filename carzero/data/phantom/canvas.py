"""Where things lie and how they are put down: body coordinates, filled solids, strokes, soft blobs, clouds.

Body coordinates: x is 0 at the midline and grows towards the patient's left (the image's right), y grows downwards;
the unit is the image's side, and (0, 0) is the middle of the image's upper edge before shift, tilt and zoom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from carzero.data.phantom.stream import Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

Points = Any  # float [K, 2] in body coordinates
Paths = Any  # a list of Points, or float [N, K, 2]
Map = Any  # float32 [size, size]

FRACTION_BITS = 5
# Line art is drawn at this side at least and then averaged down, so small images show the same ribs as large ones.
ART_SIDE = 256
# Soft profiles come from a distance transform at this side, with a margin so that shapes may leave the image.
SOFT_SIDE = 96
SOFT_MARGIN = 16
# A bell narrower than this (standard deviation in pixels) changes nothing that can be seen.
LEAST_BLUR = 0.33


def spline(points: Sequence[Sequence[float]] | NDArray[Any], *, closed: bool = True, per_segment: int = 8) -> Points:
    """Catmull-Rom curve through the points: float [K, 2]; a point given twice makes a corner."""
    p = np.asarray(points, np.float64)
    ends = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    p = np.concatenate([ends[0], p, ends[1]])
    t = np.arange(per_segment) / per_segment
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1)
    # [segments, 4, 2]: the four points that each segment of the curve depends on.
    around = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]], 1)
    flat = (basis @ around).reshape(-1, 2)
    return flat if closed else np.concatenate([flat, p[-2:-1]])


def ellipse(x: Any, y: Any, rx: Any, ry: Any, degrees: float = 0.0, count: int = 28) -> Points:
    """Outline of an ellipse, float [count, 2], or of n of them, [n, count, 2], where x, y, rx and ry are arrays [n]."""
    t = np.arange(count) * (2 * np.pi / count)
    a = np.deg2rad(degrees)
    x, y, rx, ry = (np.asarray(v, np.float64)[..., None] for v in (x, y, rx, ry))
    u, v = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + u * np.cos(a) - v * np.sin(a), y + u * np.sin(a) + v * np.cos(a)], -1)


def band(path: Points, width: float | NDArray[Any]) -> Points:
    """Outline of a ribbon along each path [..., K, 2]: float [..., 2K, 2]; width is one number or one per point."""
    step = np.empty_like(path)
    step[..., 1:-1, :] = path[..., 2:, :] - path[..., :-2, :]
    step[..., 0, :] = path[..., 1, :] - path[..., 0, :]
    step[..., -1, :] = path[..., -1, :] - path[..., -2, :]
    half = np.asarray(width) / (2 * np.hypot(step[..., 0], step[..., 1]) + 1e-9)
    normal = np.stack([-step[..., 1] * half, step[..., 0] * half], -1)
    return np.concatenate([path + normal, (path - normal)[..., ::-1, :]], -2)


class Canvas:
    """A square image plane with the patient's position on it.

    Args:
        size: side in pixels.
        shift: (x, y) of the body's origin, in sides, from the middle of the upper edge.
        degrees: tilt, clockwise.
        zoom: magnification about the image's centre.
    """

    def __init__(self, size: int, shift: tuple[float, float], degrees: float, zoom: float) -> None:
        self.size = size
        self.art_side = max(size, ART_SIDE)
        angle = np.deg2rad(degrees)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # body -> image: turn about the body point (0, 0.5), which lands at (0.5, 0.5) + shift
        self._turn = turn
        self._offset = np.array([0.5 + shift[0], 0.5 + shift[1]]) - turn @ np.array([0.0, 0.5])
        back = np.linalg.inv(turn)
        line = (np.arange(size) + 0.5) / size
        px, py = line - self._offset[0], line - self._offset[1]
        # Body coordinates of every pixel.
        self.x: Map = (back[0, 0] * px[None, :] + back[0, 1] * py[:, None]).astype(np.float32)
        self.y: Map = (back[1, 0] * px[None, :] + back[1, 1] * py[:, None]).astype(np.float32)

    def to_image(self, points: Points) -> Points:
        """Body coordinates -> sides of the image, float [K, 2]."""
        return np.asarray(points) @ self._turn.T + self._offset

    def box(self, points: Points, margin: float = 0.0) -> tuple[int, int, int, int]:
        """Pixels (x0, y0, x1, y1) around the points, x1 and y1 exclusive, inside the image."""
        image = self.to_image(points)
        low = np.floor((image.min(0) - margin) * self.size).astype(int)
        high = np.ceil((image.max(0) + margin) * self.size).astype(int)
        x0, y0 = (int(min(max(v, 0), self.size - 1)) for v in low)
        x1, y1 = (int(min(max(h, v + 1), self.size)) for h, v in zip(high, (x0, y0)))
        return x0, y0, x1, y1

    def art(self) -> NDArray[np.uint8]:
        """A black plane for `fill` and `stroke`, uint8 [art_side, art_side]."""
        return np.zeros((self.art_side, self.art_side), np.uint8)

    def _fixed(self, paths: Paths, side: int, margin: float = 0.0) -> list[NDArray[np.int32]]:
        scale = 1 << FRACTION_BITS
        # cv2's pixel centres lie on whole numbers, ours on halves.
        turn, offset = self._turn.T * (side * scale), self._offset * (side * scale) + (margin - 0.5) * scale
        if isinstance(paths, np.ndarray):
            return list(np.rint(paths @ turn + offset).astype(np.int32))
        return [np.rint(path @ turn + offset).astype(np.int32) for path in paths]

    def fill(self, art: NDArray[np.uint8], outlines: Paths, value: int) -> None:
        """Fill each outline; later ones cover earlier ones."""
        for fixed in self._fixed(outlines, self.art_side):
            cv2.fillPoly(art, [fixed], value, cv2.LINE_AA, FRACTION_BITS)

    def stroke(self, art: NDArray[np.uint8], paths: Paths, value: int, width: float, closed: bool = False) -> None:
        """Draw each path as a line of this width (in sides; one pixel of the plane at least)."""
        pixels = max(1, round(width * self.art_side))
        cv2.polylines(art, self._fixed(paths, self.art_side), closed, value, pixels, cv2.LINE_AA, FRACTION_BITS)

    def finish(self, plane: NDArray[np.uint8], blur: float = 0.0) -> Map:
        """The plane as float32 [size, size] in 0..1; blur is a standard deviation in sides."""
        art: Any = plane
        if self.art_side != self.size:
            art = cv2.resize(art, (self.size, self.size), interpolation=cv2.INTER_AREA)
        if blur * self.size > LEAST_BLUR:
            art = cv2.GaussianBlur(art, (0, 0), blur * self.size)
        return art.astype(np.float32) * np.float32(1 / 255)

    def mask(self, outline: Points, blur: float = 0.0) -> Map:
        """1 inside the outline, 0 outside, with a smooth edge."""
        art = self.art()
        self.fill(art, [outline], 255)
        return self.finish(art, blur)

    def solid(self, outline: Points, depth: float, blur: float = 0.0, rim: float = 0.0) -> Map:
        """Thickness of a rounded solid with this outline: `rim` at the edge, 1 from `depth` (sides) inwards."""
        side, pad = SOFT_SIDE, SOFT_MARGIN
        coarse = np.zeros((side + 2 * pad,) * 2, np.uint8)
        cv2.fillPoly(coarse, self._fixed([outline], side, pad), 255, cv2.LINE_8, FRACTION_BITS)
        inside = cv2.distanceTransform(coarse, cv2.DIST_L2, cv2.DIST_MASK_3)
        rest = 1 - np.minimum(inside * np.float32(1 / (depth * side)), 1)
        profile = np.float32(rim) + np.float32(1 - rim) * np.sqrt(np.maximum(1 - rest * rest, 0))
        profile = cv2.GaussianBlur(profile, (0, 0), 1.2)
        profile = cv2.resize(profile[pad:-pad, pad:-pad], (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.asarray(profile * self.mask(outline, blur), np.float32)

    def blob(self, into: Map, x: float, y: float, rx: float, ry: float, value: float, degrees: float = 0.0) -> None:
        """Add a soft bump with standard deviations rx, ry (sides)."""
        reach = 3.0 * max(rx, ry)
        x0, y0, x1, y1 = self.box(np.array([[x, y]]), reach * float(np.hypot(*self._turn[0])))
        dx, dy = self.x[y0:y1, x0:x1] - np.float32(x), self.y[y0:y1, x0:x1] - np.float32(y)
        a = np.deg2rad(degrees)
        u = (dx * np.float32(np.cos(a)) + dy * np.float32(np.sin(a))) * np.float32(1 / rx)
        v = (dy * np.float32(np.cos(a)) - dx * np.float32(np.sin(a))) * np.float32(1 / ry)
        into[y0:y1, x0:x1] += np.float32(value) * np.exp(np.float32(-0.5) * (u * u + v * v))

    def cloud(self, stream: Stream, cells: int, octaves: int = 3) -> Map:
        """Smooth random field, mean about 0 and spread about 1; `cells` bumps a side at the coarsest."""
        total = np.zeros((self.size, self.size), np.float32)
        weight = 1.0
        for _ in range(octaves):
            bumps = cv2.resize(stream.grain(cells, cells), (self.size, self.size), interpolation=cv2.INTER_CUBIC)
            total += np.float32(weight) * bumps
            cells, weight = cells * 2, weight * 0.6
        return total
