"""Findings: their names, sides and severities, how often they occur, and their boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from carzero.data.phantom import lesions
from carzero.data.phantom.anatomy import LEFT, RIGHT
from carzero.data.phantom.body import Layers
from carzero.data.phantom.canvas import Canvas, Points
from carzero.data.phantom.stream import Stream

Box = tuple[int, int, int, int]
SIDES = {"right": RIGHT, "left": LEFT}
SIZES = ("small", "moderate", "large")
GRADES = ("mild", "moderate", "severe")


@dataclass(frozen=True)
class Finding:
    """One finding of one phantom.

    Args:
        name: one of `FINDINGS`.
        side: the patient's "left" (the image's right), "right", "bilateral", or None for a finding without a side.
        severity: small, moderate, large (sizes) or mild, moderate, severe (grades); None for devices.
        box: pixels (x0, y0, x1, y1) around it, x1 and y1 exclusive; filled in by `draw`.
    """

    name: str
    side: str | None = None
    severity: str | None = None
    box: Box = (0, 0, 0, 0)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides it lies on."""
        if self.side == "bilateral":
            return ("left", "right")
        return (self.side,) if self.side else ()


@dataclass(frozen=True)
class Kind:
    """What is known about all findings of one name."""

    severities: tuple[str | None, ...]
    sided: bool
    bilateral: float  # share of the sided ones that lie on both sides
    paint: Callable[[Layers, int, int, Stream], Points]  # layers, side, severity 0..2, stream -> points its box holds


FINDINGS: dict[str, Kind] = {
    "pleural effusion": Kind(SIZES, True, 0.15, lesions.effusion),
    "pneumothorax": Kind(SIZES, True, 0.0, lesions.pneumothorax),
    "consolidation": Kind(SIZES, True, 0.0, lesions.consolidation),
    "nodule": Kind(SIZES, True, 0.0, lesions.nodule),
    "cardiomegaly": Kind(GRADES, False, 0.0, lesions.cardiomegaly),
    "atelectasis": Kind(GRADES, True, 0.0, lesions.atelectasis),
    "edema": Kind(GRADES, False, 0.0, lesions.edema),
    "pacemaker": Kind((None,), True, 0.0, lesions.pacemaker),
}

NORMAL_SHARE = 0.25
# How many findings the others have.
COUNTS = (1, 1, 1, 2, 2, 2, 2, 3, 3, 4)
# Small ones are the hard cases: one in five.
SEVERITIES = (0, 1, 1, 2, 2)


def plan(stream: Stream) -> tuple[Finding, ...]:
    """Which findings a phantom has; boxes are still empty."""
    if stream.chance(NORMAL_SHARE):
        return ()
    chosen = []
    for name in stream.sample(list(FINDINGS), stream.pick(COUNTS)):
        kind = FINDINGS[name]
        side = stream.pick(("left", "right")) if kind.sided else None
        if kind.sided and stream.chance(kind.bilateral):
            side = "bilateral"
        grade = stream.pick(SEVERITIES)
        chosen.append(Finding(name, side, kind.severities[min(grade, len(kind.severities) - 1)]))
    return tuple(chosen)


def paint(layers: Layers, finding: Finding, key: tuple[int, ...]) -> Finding:
    """Draw one finding into the layers.

    Args:
        layers: the patient; changed.
        finding: what to draw; its box is not read.
        key: of the phantom; the finding's shape depends on it, its name and its side, and on no other finding.
    Returns:
        The finding with its box.
    """
    kind = FINDINGS[finding.name]
    severity = kind.severities.index(finding.severity)
    canvas: Canvas = layers.canvas
    points = []
    for side in finding.sides or ("left",):
        stream = Stream(*key, list(FINDINGS).index(finding.name), 1 + (side == "left"))
        points.append(kind.paint(layers, SIDES[side], severity, stream))
    return replace(finding, box=canvas.box(np.concatenate(points), margin=0.012))
