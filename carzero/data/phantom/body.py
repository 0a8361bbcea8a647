"""The healthy patient as thickness maps: soft tissue, air, vessels, bones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from carzero.data.phantom.anatomy import LEFT, RIGHT, Anatomy
from carzero.data.phantom.canvas import Canvas, Map, Points, band, ellipse, spline
from carzero.data.phantom.stream import Stream

# Attenuation of the thickest part of each tissue; the trunk is 1.
HEART = 0.13
VESSEL = 0.13
BONE = 0.24


@dataclass
class Layers:
    """What the rays meet; findings change `fill`, `gate`, `heart` and `extra` only."""

    canvas: Canvas
    anatomy: Anatomy
    trunk: Map  # soft tissue of trunk, arms, breasts, abdomen, great vessels
    lungs: dict[int, Map]  # air of each lung, 0..1, before the heart takes its place
    heart: Map  # 0..1
    great: Map  # 0..1, the great vessels above the heart
    vessels: Map  # 0..1, inside the lungs
    bones: Map  # 0..1 and more where bones cross
    fill: dict[int, Map] = field(default_factory=dict)  # share of a lung's air replaced, < 0: more air
    gate: Map | None = None  # what is left of the vessels, 0..1
    extra: Map | None = None  # attenuation added

    def attenuation(self, step: int = 1) -> Map:
        """Line integral of every `step`-th pixel, float32."""
        pick = (slice(None, None, step),) * 2
        heart = self.heart[pick]
        core = np.maximum(heart, self.great[pick])
        clear = 1 - np.float32(0.92) * np.minimum(core * np.float32(1.6), 1)
        air: Map = 0.0
        for side, lung in self.lungs.items():
            part = lung[pick]
            air = air + (part * (1 - self.fill[side][pick]) if side in self.fill else part)
        vessels = self.vessels[pick] * np.minimum(air * 2, 1)
        if self.gate is not None:
            vessels *= self.gate[pick]
        # Where no air is behind them, stray rays wash bones out; shoulders are thin enough to show theirs.
        low = self.canvas.y[pick] > np.float32(self.anatomy.apex + 0.25 * self.anatomy.height)
        shown = 1 - np.float32(0.64) * (low | (core > 0.3)) * (1 - np.minimum(air * clear * 4, 1))
        total = self.trunk[pick] - np.float32(self.anatomy.air) * air * clear
        total += np.float32(HEART) * core + np.float32(VESSEL) * vessels * clear
        total += np.float32(BONE) * self.bones[pick] * shown
        return total if self.extra is None else total + self.extra[pick]


def paint(canvas: Canvas, anatomy: Anatomy, stream: Stream) -> Layers:
    """Draw a healthy patient."""
    lungs = {side: canvas.solid(anatomy.lung(side), 0.085, blur=0.0015) for side in (RIGHT, LEFT)}
    heart = heart_map(canvas, anatomy)
    vessels = _vessels(canvas, anatomy, stream)
    great = canvas.solid(anatomy.upper_mediastinum(), 0.06, 0.004)
    trunk, bones = _trunk(canvas, anatomy, stream), _bones(canvas, anatomy, stream)
    return Layers(canvas, anatomy, trunk, lungs, heart, great, vessels, bones)


def heart_map(canvas: Canvas, anatomy: Anatomy, enlarge: float = 1.0) -> Map:
    """Thickness of the heart, 0..1."""
    return canvas.solid(anatomy.heart(enlarge), 0.10, 0.004, rim=0.35)


def _trunk(canvas: Canvas, a: Anatomy, stream: Stream) -> Map:
    y = canvas.y
    trunk = canvas.solid(a.torso(), 0.17, 0.003, rim=0.30)
    # Neck and shoulders are thinner than the chest, the belly is thicker.
    ramp = np.clip((y - np.float32(a.apex - 0.12)) * np.float32(1 / 0.36), 0, 1)
    belly = np.clip((y - np.float32(a.apex + 0.75 * a.height)) * np.float32(1 / 0.30), 0, 1)
    trunk *= 1 + 0.018 * canvas.cloud(stream, 9)
    trunk *= 0.66 + (0.34 + 0.08 * a.stature) * ramp * ramp * (3 - 2 * ramp) + (0.22 + 0.12 * a.stature) * belly
    for side in (RIGHT, LEFT):
        arm = a.arm(side)
        radius = a.half_width * (0.21 + 0.07 * a.stature)
        tube = canvas.solid(band(spline(arm, closed=False), 2 * radius), radius, 0.002)
        trunk = np.maximum(trunk, 0.5 * tube)
        if a.breast:
            low = a.apex + a.height * stream.between(0.78, 0.95)
            outline = ellipse(side * a.half_width * 0.60, low - 0.16, a.half_width * 0.50, 0.17, side * -14)
            trunk += 0.16 * a.breast * canvas.solid(outline, 0.14, 0.003)
    # The windpipe down to its fork, and its two main branches.
    shift = a.rotation * 0.05
    fork = 0.31
    pipe = spline(
        a.points([(shift * 0.5, -0.35), (shift, 0.0), (shift - 0.02, 0.18), (shift - 0.02, fork)]), closed=False
    )
    art = canvas.art()
    canvas.stroke(art, [pipe], 225, 0.038)
    for side, down in ((RIGHT, 0.10), (LEFT, 0.075)):
        canvas.stroke(art, [a.points([(shift - 0.02, fork - 0.01), (side * 0.22, fork + down)])], 140, 0.030)
    trunk -= 0.15 * canvas.finish(art, 0.007)
    for side, share in ((RIGHT, 0.9), (LEFT, 1.0)):
        hx, hy = a.at(side * (a.mediastinum + 0.07), 0.44 - 0.04 * (side == LEFT))
        canvas.blob(trunk, hx, hy, 0.022, 0.045, 0.12 * share, -side * 18)
    # Gas under the diaphragm: the stomach, and bowel lower down.
    if a.bubble:
        x, top = a.at(stream.between(0.38, 0.62), a.dome_left)
        wide = a.half_width * (0.12 + 0.20 * a.bubble)
        high = wide * stream.between(0.35, 0.7)
        gas = canvas.solid(ellipse(x, top + 0.03 + high, wide, high, stream.between(-20, 20)), 0.05, 0.003)
        trunk -= (0.10 + 0.14 * a.bubble) * gas
    for _ in range(stream.pick((0, 0, 1, 2, 3))):
        x, top = a.at(stream.between(-0.1, 0.9), a.dome_left + stream.between(0.17, 0.35))
        outline = ellipse(x, top, stream.between(0.015, 0.05), stream.between(0.012, 0.03), stream.between(-50, 50))
        trunk -= stream.between(0.06, 0.15) * canvas.mask(outline, 0.004)
    return trunk


def _branches(stream: Stream, start: Points, heading: Points, length: Points, bend: float) -> Points:
    """Curved twigs: float [n, 7, 2] from starts [n, 2], headings [n] (radians), lengths [n]."""
    steps = 6
    curl = stream.many(len(start) * steps, -bend, bend).reshape(-1, steps)
    curl += stream.many(len(start), -bend, bend)[:, None] / 2
    angle = heading[:, None] + np.cumsum(curl, 1)
    stride = np.stack([np.cos(angle), np.sin(angle)], 2) * (length / steps)[:, None, None]
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(stride, 1)], 1)


def _vessels(canvas: Canvas, a: Anatomy, stream: Stream) -> Map:
    thick: list[Points] = []
    middle: list[Points] = []
    thin: list[Points] = []
    w = a.half_width
    for side in (RIGHT, LEFT):
        hx, hy = a.at(side * (a.mediastinum + 0.04), 0.44 - 0.03 * (side == LEFT))
        heading = np.deg2rad(np.array([-78, -58, -36, -14, 8, 28, 46, 63, 78, 90]) + stream.many(10, -8, 8))
        start = np.stack([hx + side * stream.many(10, -0.01, 0.02), hy + stream.many(10, -0.035, 0.05)], 1)
        length = w * (0.62 + 0.30 * np.abs(np.sin(heading))) * stream.many(10, 0.85, 1.15)
        mains = _branches(stream, start, heading, length, 0.13)
        twigs, tips = [], []
        for joint, share in ((1, 0.55), (2, 0.5), (3, 0.42), (4, 0.35)):
            way = np.arctan2(*(mains[:, joint + 1] - mains[:, joint]).T[::-1])
            fork = np.where(stream.many(10) < 0.5, -1, 1) * stream.many(10, 0.4, 0.9)
            shorter = length * share * stream.many(10, 0.8, 1.2)
            twigs.append(_branches(stream, mains[:, joint], way + fork, shorter, 0.14))
        twig = np.concatenate(twigs)
        for joint in (2, 4):
            way = np.arctan2(*(twig[:, joint + 1] - twig[:, joint]).T[::-1])
            fork = np.where(stream.many(len(twig)) < 0.5, -1, 1) * stream.many(len(twig), 0.4, 0.9)
            shorter = w * 0.17 * stream.many(len(twig), 0.7, 1.3)
            tips.append(_branches(stream, twig[:, joint], way + fork, shorter, 0.16))
        # Headings were drawn for the left lung; mirror them about the hilum for the right one.
        for group, to in (
            (mains[:, :4], thick),
            (mains, middle),
            (twig[:, :4], middle),
            (twig, thin),
            (np.concatenate(tips), thin),
        ):
            if side == RIGHT:
                group = np.stack([2 * hx - group[..., 0], group[..., 1]], -1)
            to.append(group)
    art = canvas.art()
    for kind, value, width in ((thin, 52, 0.0035), (middle, 108, 0.0055), (thick, 215, 0.009)):
        for group in kind:
            canvas.stroke(art, group, value, width)
    return canvas.finish(art, 0.0016)


def _bones(canvas: Canvas, a: Anatomy, stream: Stream) -> Map:
    w = a.half_width
    back, front, other = canvas.art(), canvas.art(), canvas.art()
    wide = a.height * 0.92 / a.ribs * stream.between(0.38, 0.50)
    t = np.linspace(0, 1, 12)
    for side in (RIGHT, LEFT):
        rear, fore = a.cage(side)
        rear = band(rear, wide * (0.55 + 0.55 * np.sin(np.pi * t) ** 0.6))
        canvas.fill(back, rear, 112)
        canvas.stroke(back, rear, 158, 0.004, closed=True)
        fore = band(fore[: a.ribs - 2], wide * (1.0 + 0.35 * t))
        canvas.fill(front, fore, 46)
        canvas.stroke(front, np.concatenate([fore[:, :12], fore[:, 12:]]), 62, 0.004)
        blade = a.scapula(side)
        canvas.fill(other, [blade], 46)
        canvas.stroke(other, [blade], 105, 0.005, closed=True)
        humerus = a.arm(side)
        canvas.fill(other, [band(humerus, w * 0.115)], 85)
        canvas.stroke(other, [band(humerus, w * 0.105)], 150, 0.006)
        canvas.fill(other, [ellipse(humerus[0, 0] - side * 0.012, humerus[0, 1] - 0.012, w * 0.105, w * 0.115)], 125)
        collar = a.clavicle(side)
        ribbon = band(collar, w * (0.078 + 0.03 * np.abs(np.linspace(-1, 1, len(collar)))))
        canvas.fill(other, [ribbon], 120)
        canvas.stroke(other, [ribbon], 190, 0.004, closed=True)
    return (
        canvas.finish(back, 0.0018)
        + canvas.finish(front, 0.0025)
        + canvas.finish(other, 0.002)
        + _spine(canvas, a, stream)
    )


def _spine(canvas: Canvas, a: Anatomy, stream: Stream) -> Map:
    w, turn = a.half_width, -0.05 * a.rotation
    number = np.arange(20)
    pitch = 0.068 * a.height / 0.68
    y = a.apex - 0.30 + pitch * (1 + 0.010 * number) * number
    x = w * (turn + stream.normal(0, 0.02) * np.sin(4 * (y - 0.3)))
    half, tall = w * (0.095 + 0.0025 * number), pitch * 0.40
    corners = np.array([(-1, -1), (-0.9, 0), (-1, 1), (1, 1), (0.9, 0), (1, -1)])
    bodies = np.stack([x[:, None] + half[:, None] * corners[:, 0], y[:, None] + tall * corners[:, 1]], -1)
    knobs = [ellipse(x + e * half * 0.62, y - tall * 0.3, half * 0.15, tall * 0.33, count=10) for e in (-1, 1)]
    knobs.append(ellipse(x, y + tall * 0.7, half * 0.13, np.full(20, tall * 0.5), count=10))
    art = canvas.art()
    canvas.fill(art, bodies, 66)
    canvas.stroke(art, bodies, 92, 0.004, closed=True)
    canvas.fill(art, np.concatenate(knobs), 112)
    return canvas.finish(art, 0.003)
