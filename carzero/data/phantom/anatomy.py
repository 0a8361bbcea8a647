"""Who is drawn: the sizes of one patient, and the outlines that follow from them (body coordinates)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from carzero.data.phantom.canvas import Points, spline
from carzero.data.phantom.stream import Stream

RIGHT, LEFT = -1, 1


@dataclass(frozen=True)
class Anatomy:
    """Sizes of one patient in sides of the image; `s` runs from the lung's apex (0) to its lowest point (1)."""

    half_width: float  # of the rib cage
    apex: float  # y of the lung's apex
    height: float  # from the apex to the costophrenic angle
    stature: float  # 0 slim .. 1 obese
    air: float  # attenuation that a full depth of lung lacks; the trunk is 1
    rotation: float  # -1..1: the patient turned to one side
    dome_right: float  # s of the diaphragm's top
    dome_left: float
    heart_width: float  # cardiothoracic ratio
    heart_split: float  # share of the heart right of the midline
    aorta: float  # bulge of the aortic knob
    mediastinum: float  # half-width of the upper mediastinum, in half-widths of the cage
    ribs: int
    rib_drop: float  # how steeply the ribs fall
    arm_angle: float  # 0 at the side .. 1 spread
    breast: float  # 0 none .. 1 large
    bubble: float  # 0 none .. 1 large gas bubble in the stomach

    @classmethod
    def sample(cls, stream: Stream) -> Anatomy:
        """A random patient."""
        between = stream.between
        stature = between(0, 1) ** 1.5
        return cls(
            half_width=between(0.355, 0.43),
            apex=between(0.06, 0.17),
            height=between(0.62, 0.80) * (1 - 0.16 * stature),
            stature=stature,
            air=between(0.50, 0.68) * (1 - 0.18 * stature),
            rotation=stream.normal(0, 0.7),
            dome_right=between(0.82, 0.88),
            dome_left=between(0.86, 0.92),
            heart_width=between(0.41, 0.48),
            heart_split=between(0.24, 0.36),
            aorta=between(0.0, 1.0),
            mediastinum=between(0.16, 0.23) + 0.05 * stature,
            ribs=stream.pick((8, 9, 9, 10)),
            rib_drop=between(0.10, 0.19),
            arm_angle=between(0.0, 1.0),
            breast=between(0.3, 1.0) if stream.chance(0.4) else 0.0,
            bubble=between(0.2, 1.0) if stream.chance(0.45) else 0.0,
        )

    def at(self, x: float, s: float) -> tuple[float, float]:
        """Body point at x half-widths from the midline and s down the lung."""
        return x * self.half_width, self.apex + s * self.height

    def points(self, table: Any, side: int = LEFT) -> Points:
        """Body points of a table [..., 2] of (x, s), mirrored for the right side."""
        t = np.asarray(table, np.float64)
        return t * [side * self.half_width, self.height] + [0.0, self.apex]

    def dome(self, side: int) -> float:
        return self.dome_left if side == LEFT else self.dome_right

    def wall(self, s: Any) -> Any:
        """Half-width of the lung's outer wall (in half-widths of the cage) at s."""
        return np.interp(s, [p[1] for p in WALL], [p[0] for p in WALL])

    def lung(self, side: int, lift: float = 0.0) -> Points:
        """Outline of one lung; `lift` raises its diaphragm (in s)."""
        top = self.dome(side) - lift
        corner = (0.985, 1.0 - 0.8 * lift)
        base = [
            corner,
            corner,
            (0.85, top + 0.075),
            (0.66, top + 0.01),
            (0.46, top),
            (0.27, top + 0.02),
            (0.10, top + 0.05),
        ]
        inner = [(0.09, 0.6), (0.10, 0.35), (0.11, 0.15), (0.17, 0.035)]
        wall = [p for p in WALL if p[1] < 0.9 - lift]
        return spline(self.points([*wall, *base, *inner], side))

    def heart(self, enlarge: float = 1.0) -> Points:
        """Outline of the heart; `enlarge` multiplies its width."""
        width = 2 * self.heart_width * enlarge
        right, left = -width * self.heart_split, width * (1 - self.heart_split)
        turn = 0.04 * self.rotation
        low = max(self.dome_left, self.dome_right) + 0.03
        tip = low - 0.07
        table = [
            (0.0, 0.26), (-0.10, 0.30), (right * 0.62, 0.42), (right * 0.85, 0.53), (right, 0.66), (right * 0.97, 0.78),
            (right * 0.75, low), (0.05, low + 0.05), (left * 0.70, low + 0.01), (left * 0.95, tip + 0.04),
            (left, tip - 0.05), (left * 0.87, tip - 0.17), (left * 0.68, 0.54), (left * 0.52, 0.43),
            (left * 0.38, 0.34), (0.12, 0.28),
        ]  # fmt: skip
        return spline(self.points([(x + turn, s) for x, s in table]))

    def upper_mediastinum(self) -> Points:
        """Great vessels between the neck and the heart, with the aortic knob on the left."""
        m, turn = self.mediastinum, 0.06 * self.rotation
        knob = m + 0.02 + 0.08 * self.aorta
        table = [
            (-0.8 * m, -0.40), (-0.85 * m, -0.05), (-0.95 * m, 0.12), (-1.02 * m, 0.30), (-1.15 * m, 0.46), (0.0, 0.62),
            (m + 0.10, 0.48), (m + 0.07, 0.38), (0.3 * m + 0.7 * knob, 0.315), (knob, 0.25), (knob - 0.02, 0.20),
            (m * 0.95, 0.13), (0.8 * m, -0.05), (0.75 * m, -0.40),
        ]  # fmt: skip
        return spline(self.points([(x + turn, s) for x, s in table]))

    def torso(self) -> Points:
        """Outline of neck, shoulders and trunk."""
        w, fat = self.half_width, self.stature
        y = self.apex
        flank = w * (1.13 + 0.20 * fat)
        neck = w * (0.34 + 0.12 * fat)
        half = [
            (neck * 1.05, -0.6), (neck, y - 0.20), (neck * 1.15, y - 0.10), (w * 0.85, y - 0.045 - 0.02 * fat),
            (w * 1.25, y - 0.012), (w * 1.44, y + 0.08), (w * 1.30, y + 0.22), (flank, y + 0.36),
            (flank * 1.0, y + 0.60), (flank * (0.98 + 0.08 * fat), 1.0), (flank * (1.0 + 0.1 * fat), 1.6),
        ]  # fmt: skip
        right = np.asarray(half)
        left = right[::-1] * [-1, 1]
        return spline(np.concatenate([right, left]))

    def arm(self, side: int) -> Points:
        """Path shoulder - elbow of one arm."""
        w = self.half_width
        spread = 0.10 + 0.45 * self.arm_angle
        shoulder = np.array([side * w * 1.30, self.apex + 0.085])
        elbow = shoulder + np.array([side * spread * 0.62, 0.75 - 0.2 * self.arm_angle])
        return np.stack([shoulder + (elbow - shoulder) * t for t in np.linspace(0, 1, 5)])

    def cage(self, side: int) -> tuple[Points, Points]:
        """Paths of one side's ribs: back parts (spine to flank) and front parts (flank to cartilage), [ribs, 12, 2]."""
        number = np.arange(self.ribs)[:, None]
        start = 0.035 + number * (0.92 / self.ribs) * (0.86 + 0.018 * number)
        drop = self.rib_drop * (0.35 + 0.65 * np.minimum(number / 4, 1))
        bend = start + drop
        reach = self.wall(np.minimum(bend, 1.0)) * np.where(number == 0, 0.92, 1.0)
        t = np.linspace(0, 1, 12)[None, :]
        rise, fall = np.sin(t * (np.pi / 2)), np.cos(t * (np.pi / 2))
        back = 0.05 + (reach - 0.05) * rise, start - 0.035 * np.sin(np.pi * np.minimum(t * 1.2, 1)) + drop * (1 - fall)
        inner = 0.36 + 0.035 * number
        front = inner + (reach - inner) * fall, bend + (0.16 + 0.012 * number) * rise
        return self.points(np.stack(back, -1), side), self.points(np.stack(front, -1), side)

    def clavicle(self, side: int) -> Points:
        """Path of one collar bone."""
        turn = 0.05 * self.rotation
        table = [(0.13, 0.115), (0.35, 0.075), (0.60, 0.06), (0.85, 0.015), (1.05, -0.01), (1.18, 0.01)]
        return spline(self.points([(x + side * turn, s) for x, s in table], side), closed=False, per_segment=5)

    def scapula(self, side: int) -> Points:
        """Outline of one shoulder blade."""
        table = [
            (1.14, 0.06),
            (0.98, 0.04),
            (0.90, 0.12),
            (0.93, 0.30),
            (1.00, 0.47),
            (1.06, 0.40),
            (1.13, 0.20),
            (1.22, 0.12),
        ]
        return spline(self.points(table, side))


# Outer wall of a lung: (half-widths of the cage, s).
WALL = [(0.30, 0.0), (0.50, 0.03), (0.67, 0.11), (0.81, 0.25), (0.91, 0.44), (0.97, 0.65), (1.0, 0.85)]
