"""Draw one phantom radiograph."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carzero.data.phantom import body, reports
from carzero.data.phantom.anatomy import Anatomy
from carzero.data.phantom.canvas import Canvas
from carzero.data.phantom.film import PREVIEW_STEP, Exposure, develop
from carzero.data.phantom.findings import FINDINGS, Finding, paint, plan
from carzero.data.phantom.stream import Stream
from carzero.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALLEST = 32
# Purposes of the random streams: changing how one is used leaves the others as they are.
PLAN, ANATOMY, POSITION, TEXTURE, EXPOSURE, GRAIN, REPORT, SHAPE = range(8)

Labels = dict["str | tuple[str, str]", int]


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph with everything that is known about it.

    Args:
        index: number of the phantom; with `seed` it decides everything.
        seed: of the family of phantoms.
        image: uint8 [size, size], grey, bright where rays are stopped; the patient's left is on the image's right.
        findings: what was drawn, with boxes in pixels.
        report: sentences in random order and wording: findings said, absent ones denied, normal remarks.
        aligned: the canonical sentence of each finding, `There is <severity> <side> <finding>.`
        labels: 0 or 1 per finding name, and per (name, side) for findings that have sides.
    """

    index: int
    seed: int
    image: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    report: tuple[str, ...]
    aligned: tuple[str, ...]
    labels: Labels


def planned(index: int, *, seed: int = 0) -> tuple[Finding, ...]:
    """The findings that `draw(index, seed=seed)` will draw, without drawing (boxes empty)."""
    return plan(Stream(seed, index, PLAN))


def labels_of(findings: Sequence[Finding]) -> Labels:
    """0 or 1 per finding name and per (name, side)."""
    labels: Labels = {}
    for name, kind in FINDINGS.items():
        mine = [f for f in findings if f.name == name]
        labels[name] = int(bool(mine))
        if kind.sided:
            for side in ("left", "right"):
                labels[name, side] = int(any(side in f.sides for f in mine))
    return labels


def draw(index: int, *, seed: int = 0, size: int = 256, findings: Sequence[Finding] | None = None) -> Phantom:
    """Draw phantom number `index`; the same arguments give the same phantom.

    Args:
        index: 0 or more.
        seed: 0 or more; another seed is another family of patients.
        size: side of the image in pixels, at least 32.
        findings: draw these into the same patient instead of the planned ones (their boxes are not read); `()` draws
            the patient healthy. The film's exposure does not depend on the findings, so the difference of two such
            draws is the findings and nothing else.
    Returns:
        The phantom.
    Raises:
        UserError: a finding is unknown, or its side or severity does not fit it.
    """
    if index < 0 or seed < 0:
        raise UserError(f"draw: index and seed must be 0 or more, got index={index} and seed={seed}.")
    if size < SMALLEST:
        raise UserError(f"draw: size must be at least {SMALLEST} pixels, got {size}.")
    wanted = planned(index, seed=seed) if findings is None else tuple(findings)
    _check(wanted)

    place = Stream(seed, index, POSITION)
    canvas = Canvas(
        size, (place.normal(0, 0.026), place.between(-0.02, 0.02)), place.normal(0, 2.4), place.between(0.88, 1.08)
    )
    layers = body.paint(canvas, Anatomy.sample(Stream(seed, index, ANATOMY)), Stream(seed, index, TEXTURE))
    preview = layers.attenuation(PREVIEW_STEP)
    drawn = tuple(paint(layers, f, (seed, index, SHAPE)) for f in wanted)
    exposure = Exposure.sample(Stream(seed, index, EXPOSURE))
    image = develop(layers.attenuation(), preview, exposure, Stream(seed, index, GRAIN))
    return Phantom(
        index=index,
        seed=seed,
        image=image,
        findings=drawn,
        report=reports.report(drawn, Stream(seed, index, REPORT)),
        aligned=tuple(reports.aligned(f) for f in drawn),
        labels=labels_of(drawn),
    )


def _check(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.name not in FINDINGS:
            near = difflib.get_close_matches(finding.name, FINDINGS, 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"draw: unknown finding {finding.name!r}.{hint} Known: {', '.join(FINDINGS)}.")
        kind = FINDINGS[finding.name]
        sides = ("left", "right", "bilateral") if kind.sided else (None,)
        if finding.side not in sides:
            raise UserError(f"draw: {finding.name} has side {finding.side!r}; it must be one of {sides}.")
        if finding.severity not in kind.severities:
            raise UserError(
                f"draw: {finding.name} has severity {finding.severity!r}; it must be one of {kind.severities}."
            )
    names = [f.name for f in findings]
    if len(set(names)) != len(names):
        raise UserError(f"draw: each finding may be given once (use side='bilateral' for both), got {names}.")
