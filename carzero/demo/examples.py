"""The radiographs on the page: each with its scores, how they rank among the others, and where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from carzero.data.decode import ImageSource
from carzero.demo.page import data_uri
from carzero.evaluate.boxes import Box
from carzero.evaluate.grounding import inside
from carzero.models.carzero import CARZero
from carzero.zeroshot.explain import Explanation, explain_prompts


def ranks(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the images whose logit is lower, ``[N, C]`` per column: what a logit can be read by."""
    order = logits.argsort(0, kind="stable").argsort(0, kind="stable")
    return order / max(1, len(logits) - 1)


def example(
    model: CARZero,
    image: ImageSource,
    *,
    name: str,
    prompts: Sequence[str],
    names: Sequence[str],
    logits: NDArray[np.floating],
    rank: NDArray[np.floating] | None,
    truth: str = "",
    present: Sequence[bool] | None = None,
    boxes: Sequence[Sequence[Box]] | None = None,
) -> dict[str, Any]:
    """What the template needs for one image.

    Args:
        name: caption.
        prompts, names: of the classes.
        logits: ``[C]`` of this image.
        rank: ``[C]`` of `ranks`, or None where there is nothing to rank among.
        truth: what is known to be there.
        present: whether each class is known to be there.
        boxes: of each class, in pixels of the image; those of the shown class are outlined.
    """
    shown = _shown(logits, rank, present)
    explanation = explain_prompts(model, image, [prompts[shown]])[0]
    own = list(boxes[shown]) if boxes else []
    pointing = ""
    if own:
        pointing = (
            "The peak lies inside the drawn box." if inside(explanation.peak, own) else "The peak misses the drawn box."
        )
    height, width = explanation.image.shape
    order = np.argsort(-(logits if rank is None else rank), kind="stable")
    scores = [
        {
            "name": names[c],
            "logit": float(logits[c]),
            "rank": "" if rank is None else f"{100 * rank[c]:.0f} %",
            "present": bool(present and present[c]),
        }
        for c in order[:6]
    ]
    return {
        "name": name,
        "truth": truth,
        "prompt": prompts[shown],
        "pointing": pointing,
        "alt": f"{name}. {truth}".strip(),
        "width": width,
        "height": height,
        "image": data_uri(_enlarged(explanation.image)),
        "overlay": data_uri(_outlined(explanation, own)),
        "scores": scores,
    }


def _shown(logits: NDArray, rank: NDArray | None, present: Sequence[bool] | None) -> int:
    """The class whose map is shown: the highest of those that are there, else the highest of all."""
    values = np.asarray(logits if rank is None else rank, dtype=np.float64).copy()
    if present and any(present):
        values[~np.asarray(present)] = -np.inf
    return int(values.argmax())


def _enlarged(image: NDArray[np.uint8], least: int = 320) -> NDArray[np.uint8]:
    factor = least / max(image.shape[:2])
    if factor <= 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


def _outlined(explanation: Explanation, boxes: Sequence[Box]) -> NDArray[np.uint8]:
    overlay = explanation.overlay()
    large = np.ascontiguousarray(_enlarged(overlay))
    factor = large.shape[0] / overlay.shape[0]
    for x0, y0, x1, y1 in boxes:
        low, high = (round(x0 * factor), round(y0 * factor)), (round(x1 * factor), round(y1 * factor))
        cv2.rectangle(large, low, high, (53, 208, 255), 2)
    return large
