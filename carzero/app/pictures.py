"""Pictures of the page: a radiograph in a browser's size, attention as a see-through layer, the overlay to keep."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import numpy as np

from carzero.zeroshot.explain import coloured

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carzero.zeroshot.explain import Explanation

#: Longest side of what is shown; downloads keep the original's.
SHOWN = 1024


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of an image on the page."""
    scale = min(1.0, SHOWN / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def radiograph_url(grey: NDArray[np.uint8]) -> str:
    """A ``data:`` address of the radiograph as JPEG, at the page's size."""
    small = cv2.resize(grey, shown_size(*grey.shape), interpolation=cv2.INTER_AREA)
    return _url("jpeg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])


def layer_url(explanation: Explanation, ceiling: float) -> str:
    """A ``data:`` address of the attention alone, PNG with alpha; over the radiograph it is `Explanation.overlay`."""
    values = cv2.resize(
        explanation.on_image(), shown_size(*explanation.image.shape), interpolation=cv2.INTER_AREA
    )  # fmt: skip
    colour, opacity = coloured(values, ceiling)
    alpha = np.rint(255 * opacity).astype(np.uint8)
    return _url("png", cv2.imencode(".png", np.dstack([colour[..., ::-1], alpha]))[1])


def overlay_png(explanation: Explanation, ceiling: float) -> bytes:
    """The overlay at the original's size as a PNG file that holds pixels alone."""
    rgb = explanation.overlay(ceiling)
    return cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()


def common_ceiling(*explanations: Explanation | None) -> float:
    """The greatest attention of several maps, so that they are shown on one scale."""
    return max(float(one.relative.max()) for one in explanations if one is not None)


def _url(kind: str, data: NDArray[np.uint8]) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
