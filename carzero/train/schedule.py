"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup: float, schedule: str) -> float:
    """Rate of optimizer step `step` (0-based): a linear climb, then constant or half a cosine towards 0.

    Args:
        peak: rate at the end of the climb.
        steps: length of the run.
        warmup: share of `steps` spent climbing; the first step already has a rate above 0.
        schedule: ``"cosine"`` or ``"constant"``.

    The rate depends on nothing else, so a resumed run continues it without state.
    """
    climb = round(warmup * steps)
    if step < climb:
        return peak * (step + 1) / climb
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))
