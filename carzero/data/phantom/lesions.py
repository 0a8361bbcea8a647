"""How each finding is drawn.

Every function takes the patient's layers, the side (-1 right, 1 left), the severity (0 to 2) and the stream of the
shape, changes the layers, and returns the body points that the finding's box must hold.
"""

from __future__ import annotations

import numpy as np

from carzero.data.phantom.anatomy import LEFT, RIGHT, Anatomy
from carzero.data.phantom.body import Layers, heart_map
from carzero.data.phantom.canvas import Map, Points, band, ellipse, spline
from carzero.data.phantom.stream import Stream


def _add(layers: Layers, value: Map) -> None:
    layers.extra = value if layers.extra is None else layers.extra + value


def _fill(layers: Layers, side: int, share: Map) -> None:
    """Replace a share of the air that is left in this lung."""
    before = layers.fill.get(side)
    layers.fill[side] = share if before is None else 1 - (1 - before) * (1 - share)


def _gate(layers: Layers, left_over: Map) -> None:
    layers.gate = left_over if layers.gate is None else layers.gate * left_over


def effusion(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    a, c = layers.anatomy, layers.canvas
    outer = (0.80, 0.58, 0.24)[severity] + stream.between(-0.05, 0.05)
    inner = outer + (0.19, 0.17, 0.13)[severity]
    x = np.linspace(0.0, 1.05, 12)
    meniscus = inner - (inner - outer) * (x / 1.05) ** 3.0
    surface = [(float(u), float(s)) for u, s in zip(x, meniscus)]
    outline = a.points([*surface, (1.08, 1.12), (0.0, 1.12)], side)
    _fill(layers, side, 0.93 * c.mask(outline, 0.010 if severity else 0.006))
    # The box holds the part of the lung that is under fluid.
    lung = a.lung(side)
    level = np.interp(np.abs(lung[:, 0]) / a.half_width, x, meniscus) * a.height + a.apex
    return lung[lung[:, 1] >= level - 0.02]


def pneumothorax(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    a, c = layers.anatomy, layers.canvas
    top = (0.13, 0.22, 0.36)[severity] * stream.between(0.85, 1.15)
    lateral = (0.10, 0.22, 0.46)[severity] * stream.between(0.85, 1.15)
    reach = (0.55, 0.85, 1.0)[severity]
    s = np.linspace(0, 1, 9)
    gap = lateral * np.clip(1 - (s / reach) ** 2.5, 0 if severity < 2 else 0.25, 1)
    wall = [(float(max(a.wall(v) - g, 0.2)), float(top + v * (1 - top))) for v, g in zip(s, gap)]
    dome = a.dome(side)
    low = [p for p in wall if p[1] < dome + 0.04]
    edge = spline(a.points([(0.13, top + 0.04), (0.24, top + 0.005), *low], side), closed=False)
    base = a.points([(low[-1][0], 1.05), (0.0, 1.05), (0.0, top + 0.06)], side)
    outline = np.concatenate([edge, base])
    kept = c.mask(outline)
    collapsed = (0.08, 0.16, 0.38)[severity]
    _fill(layers, side, collapsed * kept - 0.30 * (1 - kept))
    # The other lung keeps its vessels; here they end at the pleura.
    here = (c.x * np.float32(side) > 0).astype(np.float32)
    _gate(layers, 1 - here * (1 - kept))
    art = c.art()
    canvas_edge = edge[edge[:, 1] < a.apex + dome * a.height]
    c.stroke(art, [canvas_edge], 255, 0.005)
    seen = np.minimum(layers.lungs[side] * 2, 1) * (1 - np.minimum(2 * layers.great, 1))
    _add(layers, 0.16 * c.finish(art, 0.0012) * seen)
    lung = a.lung(side)
    gone = lung[(lung[:, 1] < a.apex + (top + 0.9 * reach * (1 - top)) * a.height)]
    return np.concatenate([gone, canvas_edge])


def _lung_point(a: Anatomy, side: int, stream: Stream, low: float, high: float) -> tuple[float, float]:
    """(x, s) in the free part of a lung, s in low..high, clear of the heart."""
    s = stream.between(low, high)
    inner = 0.34
    if s > 0.42:
        inner = 0.40 if side == RIGHT else 0.40 + 0.26 * min((s - 0.42) / 0.25, 1)
    return stream.between(inner, float(a.wall(s)) - 0.16), s


def consolidation(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    a, c = layers.anatomy, layers.canvas
    x, s = _lung_point(a, side, stream, 0.22, 0.72)
    size = (0.20, 0.28, 0.38)[severity] * a.half_width * stream.between(0.9, 1.1)
    flat = stream.between(0.8, 1.25)
    cx, cy = a.at(side * x, s)
    bump = np.zeros_like(layers.heart)
    c.blob(bump, cx, cy, size * 0.62, size * 0.62 * flat, 1.0)
    rough = c.cloud(stream, 18)
    share = 0.90 * np.clip(2.0 * bump * (1 + 0.16 * rough) - 0.30, 0, 1)
    if stream.chance(0.35):
        # A lobe ends at its fissure: a sharp, nearly level border.
        slope = stream.between(-0.15, 0.15)
        kept = stream.pick((-1, 1))
        depth = (c.y - np.float32(cy - 0.25 * kept * size)) - np.float32(slope) * (c.x - np.float32(cx))
        share = share * np.clip(0.5 + depth * np.float32(kept * c.size / 3), 0, 1)
    _fill(layers, side, share)
    _gate(layers, 1 - share)
    # Air bronchograms: dark, branching.
    art = c.art()
    for _ in range(1 + severity):
        way = stream.between(-0.9, 0.9)
        fall, reach = way * size * stream.between(0.7, 1.1), side * size * stream.between(0.4, 0.65)
        path = [(cx - reach, cy), (cx, cy + 0.2 * fall), (cx + reach, cy + fall)]
        c.stroke(art, [spline(path, closed=False)], 200, 0.005)
    _add(layers, -0.09 * c.finish(art, 0.003) * share)
    return ellipse(cx, cy, size * 0.98, size * 0.98 * flat)


def nodule(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    a, c = layers.anatomy, layers.canvas
    x, s = _lung_point(a, side, stream, 0.16, 0.70)
    radius = (0.026, 0.038, 0.053)[severity] * stream.between(0.9, 1.1)
    cx, cy = a.at(side * x, s)
    t = np.arange(24) * (2 * np.pi / 24)
    wobble = 1 + 0.07 * np.sin(2 * t + stream.between(0, 6.28)) + 0.05 * np.sin(3 * t + stream.between(0, 6.28))
    outline = np.stack([cx + radius * wobble * np.cos(t), cy + radius * wobble * np.sin(t)], 1)
    ball = c.solid(outline, radius, 0.0025, rim=0.5)
    _add(layers, (0.28, 0.29, 0.30)[severity] * ball)
    return outline


def cardiomegaly(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    del side
    a = layers.anatomy
    target = (0.555, 0.63, 0.71)[severity] + stream.between(-0.02, 0.025)
    enlarge = target / a.heart_width
    layers.heart = np.maximum(layers.heart, heart_map(layers.canvas, a, enlarge))
    return a.heart(enlarge)


def atelectasis(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    a, c = layers.anatomy, layers.canvas
    lift = (0.05, 0.10, 0.15)[severity] * stream.between(0.85, 1.15)
    _fill(layers, side, 0.97 * (1 - c.mask(a.lung(side, lift), 0.003)) * (c.y > np.float32(a.apex + 0.55 * a.height)))
    floor = a.dome(side) - lift
    art = c.art()
    held = [a.lung(side)[a.lung(side)[:, 1] > a.apex + (floor + 0.02) * a.height]]
    tilt = stream.between(-0.06, 0.05)
    for number in range(1 + severity):
        s = floor - 0.05 - 0.075 * number - stream.between(0, 0.03)
        near = 0.30 if side == RIGHT else 0.42
        start, end = stream.between(near, near + 0.12), float(a.wall(s)) - stream.between(0.05, 0.2)
        rise = tilt + stream.between(-0.012, 0.012)
        middle = ((start + end) / 2, s + stream.between(-0.015, 0.015))
        path = spline(a.points([(start, s + rise), middle, (end, s - rise)], side), closed=False)
        thick = (0.015, 0.019, 0.023)[severity] * stream.between(0.8, 1.2)
        ribbon = band(path, thick * (0.4 + 0.8 * np.sin(np.linspace(0.2, 2.9, len(path)))))
        c.fill(art, [ribbon], 255)
        held.append(ribbon)
    streaks = c.finish(art, 0.0025) * np.minimum(layers.lungs[side] * 1.5, 1)
    _add(layers, (0.18, 0.21, 0.23)[severity] * streaks * (1 - 0.6 * np.minimum(2 * layers.heart, 1)))
    return np.concatenate(held)


def edema(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    del side
    a, c = layers.anatomy, layers.canvas
    strength = (0.24, 0.38, 0.54)[severity] * stream.between(0.92, 1.08)
    rough = c.cloud(stream, 20)
    lines = c.art()
    for lung in (RIGHT, LEFT):
        haze = np.zeros_like(layers.heart)
        hx, hy = a.at(lung * 0.42, 0.50)
        c.blob(haze, hx, hy, 0.34 * a.half_width, 0.24 * a.height, 1.0)
        _fill(layers, lung, np.clip(strength * (0.35 + 0.75 * haze) * (1 + 0.22 * rough), 0, 0.9))
        # Septal (Kerley B) lines: short, level, at the outer wall; and a net of longer ones around the hilum.
        level = stream.many(8 + 4 * severity, 0.55, 0.90)
        edge = a.wall(level) - 0.015
        septa = [np.stack([edge - short, level], 1) for short in (0.0, stream.many(len(level), 0.06, 0.14))]
        c.stroke(lines, a.points(np.stack(septa, 1), lung), 255, 0.003)
        count = 30 + 25 * severity
        start = np.stack([stream.many(count, 0.25, 0.85), stream.many(count, 0.15, 0.80)], 1)
        turn, length = stream.many(count, -1.2, 1.2), stream.many(count, 0.06, 0.20)
        stop = start + np.stack([np.cos(turn), 0.6 * np.sin(turn)], 1) * length[:, None]
        c.stroke(lines, a.points(np.stack([start, stop], 1), lung), 165, 0.003)
    total = layers.lungs[RIGHT] + layers.lungs[LEFT]
    _add(layers, (0.06, 0.08, 0.10)[severity] * c.finish(lines, 0.002) * np.minimum(total, 1))
    # Vessels swell.
    _gate(layers, np.full_like(total, 1.25 + 0.1 * severity))
    return np.concatenate([a.lung(RIGHT), a.lung(LEFT)])


def pacemaker(layers: Layers, side: int, severity: int, stream: Stream) -> Points:
    del severity
    a, c = layers.anatomy, layers.canvas
    w = a.half_width
    cx, cy = a.at(side * stream.between(0.62, 0.86), stream.between(0.10, 0.19))
    rx, ry = w * stream.between(0.125, 0.155), w * stream.between(0.105, 0.135)
    t = np.arange(32) * (2 * np.pi / 32)
    # A rounded square; its upper edge carries the connector.
    round_off = [np.sign(wave) * np.abs(wave) ** 0.6 for wave in (np.cos(t), np.sin(t))]
    can = np.stack([cx + rx * round_off[0], cy + ry * round_off[1]], 1)
    art, leads = c.art(), c.art()
    c.fill(art, [can], 255)
    vein = a.at(-0.11, 0.20)
    start = (cx - side * rx * 0.8, cy - ry * 0.9)
    crown = a.at(side * 0.42, 0.065)
    tips = [[a.at(-0.16, 0.45), a.at(-0.10, 0.70), a.at(0.18, 0.86), a.at(stream.between(0.33, 0.42), 0.84)]]
    if stream.chance(0.6):
        tips.append([a.at(-0.15, 0.45), a.at(-0.17, 0.66), a.at(-0.08, 0.70), a.at(-0.06, 0.62)])
    wires = [spline([start, crown, vein, *tip], closed=False) for tip in tips]
    c.stroke(leads, wires, 255, 0.005)
    _add(layers, 0.75 * c.finish(art, 0.0012) + 0.34 * c.finish(leads, 0.0008))
    return np.concatenate([can, *wires])
