"""Images that are no upright frontal chest radiographs: drawn lateral views, drawn photographs, and turned radiographs.

They try the guard of `carzero.zeroshot.guard`; it is fitted on none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from carzero.data.phantom.canvas import Canvas, band, ellipse, spline
from carzero.data.phantom.film import PREVIEW_STEP, Exposure, develop
from carzero.data.phantom.stream import Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a radiograph becomes when it is handled wrongly: name -> uint8 [H, W] -> uint8.
TURNED: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "inverted": lambda image: 255 - image,
    "upside down": lambda image: np.ascontiguousarray(image[::-1, ::-1]),
    "turned by 90": lambda image: np.ascontiguousarray(np.rot90(image)),
    "turned by 270": lambda image: np.ascontiguousarray(np.rot90(image, 3)),
}
_LATERAL, _PHOTOGRAPH = 101, 102


def lateral(index: int, *, seed: int = 0, size: int = 256) -> NDArray[np.uint8]:
    """A drawn lateral chest radiograph, uint8 [size, size], developed as the drawn frontal ones are.

    One dark field of both lungs, the heart in front below, the spine behind, arms raised; half of them face left. Its
    depth, position, film and everything else is drawn at random.
    """
    stream = Stream(seed, index, _LATERAL)
    between = stream.between
    canvas = Canvas(size, (stream.normal(0, 0.03), between(-0.03, 0.03)), stream.normal(0, 3.0), between(0.86, 1.12))
    face = stream.pick((-1, 1))  # +1: the front is on the image's right
    deep = between(0.27, 0.41)  # half of the chest's depth, in sides
    top, low = between(0.10, 0.18), between(0.80, 0.93)
    fat = between(0.0, 1.0) ** 1.5

    def at(table: list[tuple[float, float]]) -> NDArray[np.float64]:
        """(depth -1 back .. 1 front, 0 apex .. 1 base) -> body coordinates."""
        t = np.asarray(table, np.float64)
        return np.stack([face * t[:, 0] * deep, top + t[:, 1] * (low - top)], 1)

    wide = 1 + 0.25 * fat
    torso = at([
        (-0.45, -0.6), (-0.55, -0.15), (-0.85, 0.0), (-1.14, 0.18), (-1.22 * wide, 0.42), (-1.15 * wide, 0.70),
        (-1.0 * wide, 0.95), (-0.95 * wide, 1.5), (1.05 * wide, 1.5), (1.18 * wide, 1.0), (1.20 * wide, 0.72),
        (1.10 * wide, 0.45), (0.95, 0.15), (0.75, -0.05), (0.70, -0.25), (0.8, -0.6),
    ])  # fmt: skip
    body = canvas.solid(spline(torso), 0.20, 0.003, rim=0.30) * (0.85 + 0.25 * fat)
    body *= 1 + 0.02 * canvas.cloud(stream, 8)
    # the raised arms and the shoulders cover the apices
    lift = between(-0.4, 0.2)
    shoulder = at([(-0.35, 0.14), (0.20, -0.05), (0.6, -0.20 + 0.3 * lift), (1.3, -0.35 + lift)])
    body += 0.35 * canvas.solid(band(spline(shoulder, closed=False), between(0.20, 0.28)), 0.09, 0.006, rim=0.3)
    dome, corner = between(0.72, 0.84), between(0.94, 1.04)
    lung = at([
        (-0.28, 0.03), (-0.72, 0.14), (-0.98, 0.35), (-1.02, 0.65), (-0.93, corner), (-0.80, corner - 0.06),
        (-0.45, dome + 0.06), (0.05, dome - 0.01), (0.55, dome + 0.02), (0.92, dome + 0.12), (0.98, dome - 0.05),
        (0.95, 0.45), (0.72, 0.20), (0.35, 0.06),
    ])  # fmt: skip
    air = canvas.solid(spline(lung), 0.11, 0.004)
    heart = at([
        (0.95, 0.48), (0.98, dome + 0.02), (0.50, dome + 0.05), (0.0, dome - 0.05), (-0.15, 0.62), (0.10, 0.46),
        (0.45, 0.36), (0.80, 0.40),
    ])  # fmt: skip
    core = between(0.6, 1.0) * canvas.solid(spline(heart), 0.12, 0.012, rim=0.3)
    arch = at([(0.35, 0.38), (0.20, 0.24), (-0.12, 0.22), (-0.38, 0.34), (-0.52, 0.60), (-0.55, 0.95)])
    core = np.maximum(core, between(0.1, 0.4) * canvas.mask(band(spline(arch, closed=False), 0.055), 0.012))
    total = body - between(0.50, 0.68) * air * (1 - 0.65 * core) + 0.10 * core
    for _ in range(2):
        x, y = at([(-0.05 + stream.normal(0, 0.05), 0.40 + stream.normal(0, 0.03))])[0]
        canvas.blob(total, x, y, 0.03, 0.035, between(0.05, 0.12))
    pipe = at([(0.22, -0.25), (0.08, 0.05), (-0.05, 0.30)])
    total -= 0.14 * canvas.mask(band(spline(pipe, closed=False), 0.030), 0.006)
    total += _lateral_bones(canvas, stream, at)
    exposure = Exposure.sample(stream)
    return develop(total, total[::PREVIEW_STEP, ::PREVIEW_STEP].copy(), exposure, stream)


def _lateral_bones(canvas: Canvas, stream: Stream, at: Callable) -> NDArray[np.float32]:
    art, ribs = canvas.art(), canvas.art()
    step = stream.between(0.072, 0.085)
    bend, stoop = stream.between(0.1, 0.35), stream.between(0.5, 0.7)
    for number in range(16):
        s = -0.06 + step * number
        depth = -stoop - bend * np.sin(np.pi * np.clip(s, 0, 1))
        half, tall = 0.135, step * 0.40
        square = at(
            [(depth - half, s - tall), (depth + half, s - tall), (depth + half, s + tall), (depth - half, s + tall)]
        )
        canvas.fill(art, [square], 90)
        canvas.stroke(art, [square], 130, 0.004, closed=True)
        knob = at([(depth - 0.24, s + tall)])[0]
        canvas.fill(art, [ellipse(knob[0], knob[1], 0.022, 0.012, 35)], 90)
    for number in range(9):
        s = 0.06 + 0.095 * number
        for shift in (0.0, stream.between(0.015, 0.04)):
            path = at(
                [
                    (-0.85, s + shift),
                    (-0.98, s + 0.08 + shift),
                    (-0.5, s + 0.20 + shift),
                    (0.2, s + 0.30 + shift),
                    (0.7, s + 0.34),
                ]
            )
            canvas.stroke(ribs, [spline(path, closed=False)], 46, 0.009)
    breast = at([(0.78, 0.10), (0.95, 0.28), (1.04, 0.55)])
    canvas.fill(art, [band(spline(breast, closed=False), 0.022)], 110)
    blade = at([(-0.55, 0.05), (-0.85, 0.30), (-0.9, 0.42), (-0.62, 0.25)])
    canvas.stroke(art, [spline(blade)], 70, 0.006, closed=True)
    return np.float32(0.24) * (canvas.finish(art, 0.003) + canvas.finish(ribs, 0.003))


def photograph(index: int, *, seed: int = 0, size: int = 256) -> NDArray[np.uint8]:
    """A drawn grey photograph, uint8 [size, size]: a lit background, shaded and textured things, grain."""
    stream = Stream(seed, index, _PHOTOGRAPH)
    between = stream.between
    canvas = Canvas(size, (0.0, 0.0), stream.normal(0, 8), 1.0)
    light = stream.normal(0, 0.5) * (canvas.y - 0.5) + stream.normal(0, 0.3) * canvas.x
    horizon = between(0.2, 0.9)
    scene = 0.5 + light + between(-0.3, 0.3) * (canvas.y > horizon)
    scene += between(0.02, 0.15) * canvas.cloud(stream, stream.pick((3, 6, 12)), 4)
    for _ in range(stream.pick((1, 2, 4, 8, 14))):
        x, y = between(-0.5, 0.5), between(0.0, 1.0)
        rx, ry = between(0.03, 0.3), between(0.03, 0.3)
        if stream.chance(0.5):
            outline = ellipse(x, y, rx, ry, between(-90, 90))
        else:
            corners = np.sort(stream.many(stream.pick((3, 4, 5, 6)), 0, 2 * np.pi))
            outline = np.stack([x + rx * np.cos(corners), y + ry * np.sin(corners)], 1)
        mask = canvas.mask(outline, between(0.0005, 0.01))
        shade = (
            between(0, 1)
            + between(-1.5, 1.5) * (canvas.x - np.float32(x))
            + between(-0.2, 0.2) * canvas.cloud(stream, 10)
        )
        scene = scene * (1 - mask) + shade * mask
    scene += between(0.003, 0.04) * stream.grain(size, size)
    low, high = np.percentile(scene, [between(0, 4), between(96, 100)])
    return np.clip(255 * (scene - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)


def patches(photo: NDArray[np.uint8], count: int, *, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Square pieces of a photograph at random places and of random sizes, half of its short side or more."""
    stream = Stream(seed, photo.shape[0], photo.shape[1])
    short = min(photo.shape[:2])
    found = []
    for _ in range(count):
        side = int(stream.between(0.5, 1.0) * short)
        y, x = (int(stream.between(0, length - side)) for length in photo.shape[:2])
        found.append(cv2.resize(photo[y : y + side, x : x + side], (256, 256), interpolation=cv2.INTER_AREA))
    return found
