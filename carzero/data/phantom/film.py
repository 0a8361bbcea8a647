"""From line integrals to the grey values of a finished film."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from carzero.data.phantom.canvas import Map
from carzero.data.phantom.stream import Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREVIEW_STEP = 4


@dataclass(frozen=True)
class Exposure:
    """How one film was taken and developed."""

    scatter: float  # share of the transmitted light that lost its way
    noise: float  # of the quanta, at the intensity of unattenuated rays
    sharpen: float  # strength of the edge enhancement
    blur: float  # focal spot and detector, standard deviation in sides
    mean: float  # grey values aimed at by the automatic development: mean,
    bright: float  # 95th percentile
    black: float  # and unattenuated rays
    border: tuple[float, float, float, float]  # collimation: left, top, right, bottom, in sides
    border_tilt: float  # degrees
    border_grey: int
    marker: str  # burned-in letter at the upper corner of its side, or ""
    note: str

    @classmethod
    def sample(cls, stream: Stream) -> Exposure:
        """A random film."""
        between = stream.between
        z = stream.normal(0, 1.1)
        edges = [between(0.01, 0.055) if stream.chance(0.16) else 0.0 for _ in range(4)]
        if stream.chance(0.10):
            edges[stream.pick((0, 2))] = between(0.05, 0.12)
        return cls(
            scatter=between(0.02, 0.14),
            noise=between(0.003, 0.012),
            sharpen=between(0.0, 1.0) ** 1.3 * 1.2,
            blur=between(0.0008, 0.0024),
            mean=float(np.clip(142 + 17 * z, 104, 172)),
            bright=float(np.clip(213 + 8 * z + stream.normal(0, 11), 184, 240)),
            black=between(0, 14) if stream.chance(0.8) else between(10, 45),
            border=(edges[0], edges[1], edges[2], edges[3]),
            border_tilt=stream.normal(0, 1.0),
            border_grey=0 if stream.chance(0.88) else 255,
            marker=stream.pick(("L", "L", "L", "R", "R", "")),
            note=stream.pick(("", "", "", "AP", "PORTABLE", "AP PORTABLE")),
        )


def develop(attenuation: Map, preview: Map, exposure: Exposure, stream: Stream) -> NDArray[np.uint8]:
    """Grey image of the line integrals.

    Args:
        attenuation: float32 [size, size].
        preview: float32 [size/4, size/4], the same patient without findings: scatter and development follow it, so
            that a finding changes the image where it lies and nowhere else.
        exposure: how to develop.
        stream: of the noise and the marker's place.
    Returns:
        uint8 [size, size].
    """
    size = attenuation.shape[0]
    # Rays: Beer's law with 2.6 e-foldings through a trunk of thickness 1.
    density = np.float32(2.6)
    through = np.exp(-density * np.maximum(attenuation, 0))
    coarse = np.exp(-density * np.maximum(preview, 0))
    stray = cv2.GaussianBlur(coarse, (0, 0), 0.07 * len(coarse), borderType=cv2.BORDER_REPLICATE)
    stray_coarse, stray = stray, cv2.resize(stray, (size, size), interpolation=cv2.INTER_LINEAR)
    light = through + np.float32(exposure.scatter) * stray
    grain = stream.grain(size, size)
    # Quanta: the noise grows with the root of the light; a smaller image averages more of them.
    light += np.float32(exposure.noise * size / 256) * np.sqrt(light) * grain * np.float32(0.35)
    film = -np.log(np.maximum(light, np.float32(1e-3)))
    if exposure.blur * size > 0.25:
        film = cv2.GaussianBlur(film, (0, 0), exposure.blur * size)
    if exposure.sharpen:
        film += np.float32(exposure.sharpen) * (film - cv2.GaussianBlur(film, (0, 0), max(0.012 * size, 0.8)))
    return _print(film, _curve(coarse, stray_coarse, exposure), exposure, stream)


def _curve(coarse: Map, stray: Map, exposure: Exposure) -> tuple[float, float, float]:
    """Film values shown as black and as `bright`, and the gamma that gives the mean aimed at."""
    plain = np.sort(-np.log(coarse + np.float32(exposure.scatter) * stray), axis=None)
    # Rays past the body are black; where the body fills the film, black lies a little below its thinnest part.
    low = max(float(plain[len(plain) // 100]) + 0.03, float(plain[len(plain) // 25]) - 0.25)
    high = float(plain[int(0.95 * len(plain))])
    scaled = np.clip((plain[::5] - low) / (high - low), 0, 1.1)
    span = exposure.bright - exposure.black
    fast, slow = 0.5, 2.2
    for _ in range(9):
        gamma = (fast * slow) ** 0.5
        if exposure.black + span * float(np.mean(scaled**gamma)) > exposure.mean:
            fast = gamma
        else:
            slow = gamma
    return low, high, (fast * slow) ** 0.5


def _print(film: Map, curve: tuple[float, float, float], exposure: Exposure, stream: Stream) -> NDArray[np.uint8]:
    low, high, gamma = curve
    size = film.shape[0]
    span = exposure.bright - exposure.black
    # A table of 4096 steps instead of a power per pixel; the shoulder above `bright` approaches white smoothly.
    steps = 4096
    reach = 1.6
    level = np.linspace(0, reach, steps, dtype=np.float64)
    grey = exposure.black + span * level**gamma
    room = 255.0 - exposure.bright
    over = np.maximum(grey - exposure.bright, 0)
    grey = np.minimum(grey, exposure.bright) + room * (1 - np.exp(-over / room))
    table = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    index = np.clip((film - np.float32(low)) * np.float32((steps - 1) / (high - low) / reach), 0, steps - 1)
    image = table[index.astype(np.int16)]
    return _burn(_collimate(image, exposure, size), exposure, stream, size)


def _collimate(image: NDArray[np.uint8], exposure: Exposure, size: int) -> NDArray[np.uint8]:
    left, top, right, bottom = exposure.border
    if not any(exposure.border):
        return image
    lean = np.tan(np.deg2rad(exposure.border_tilt)) / 2
    # A side that is not collimated keeps its full image, whatever the tilt.
    edge = [e if e else -1.0 for e in (left, top, right, bottom)]
    corners = np.array([
        (edge[0] + lean, edge[1] - lean), (1 - edge[2] + lean, edge[1] + lean),
        (1 - edge[2] - lean, 1 - edge[3] + lean), (edge[0] - lean, 1 - edge[3] - lean),
    ])  # fmt: skip
    window = np.zeros_like(image)
    cv2.fillPoly(window, [np.rint(corners * size * 32).astype(np.int32)], 255, cv2.LINE_AA, 5)
    return np.where(window > 127, image, np.uint8(exposure.border_grey))


def _burn(image: NDArray[np.uint8], exposure: Exposure, stream: Stream, size: int) -> NDArray[np.uint8]:
    across, down, grey = stream.between(0.05, 0.10), stream.between(0.09, 0.18), stream.between(215, 255)
    for text, scale, drop in ((exposure.marker, 0.0025, 0.0), (exposure.note, 0.0012, 0.06)):
        if not text:
            continue
        # The patient's left is on the image's right.
        start = across if exposure.marker == "R" else 1 - across - 0.045 * (1 + 0.35 * (len(text) - 1))
        spot = (int(start * size), int((down + drop) * size))
        weight = max(1, round(0.008 * size)) if drop == 0 else 1
        cv2.putText(image, text, spot, cv2.FONT_HERSHEY_SIMPLEX, scale * size, int(grey), weight, cv2.LINE_AA)
    return image
