"""The demo's page: one HTML file with its images inside, which needs no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from carzero.templates import templates

NOT_A_DEVICE = "This is not a medical device: nothing here may be used for a diagnosis."


def write_page(path: Path, context: dict[str, Any]) -> None:
    """Render ``page.html`` to `path`: autoescaped; a name that the template knows and the context lacks is an error."""
    environment = templates("carzero.demo")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(environment.get_template("page.html").render(context), encoding="utf-8")
    os.replace(partial, path)


def data_uri(image: NDArray[np.uint8], *, longest: int = 360, quality: int = 85) -> str:
    """A grey or RGB image ``[H, W]`` or ``[H, W, 3]`` as a JPEG inside a URI, its longest side at most `longest`."""
    factor = min(1.0, longest / max(image.shape[:2]))
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    bgr = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"data_uri: cannot encode an image of shape {image.shape} and dtype {image.dtype}.")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def loss_curve(losses: Sequence[float], note: str) -> dict[str, Any]:
    """Points and ticks of the loss curve for the template's 360 x 220 drawing: each step, and a running mean."""
    values = np.asarray(losses, dtype=np.float64)
    width = max(1, len(values) // 25)
    kernel = np.ones(width) / width
    smooth = np.convolve(np.pad(values, (width // 2, width - 1 - width // 2), mode="edge"), kernel, "valid")
    low, high = 0.0, float(values.max()) * 1.02 or 1.0
    steps = np.arange(1, len(values) + 1)

    def x(step: Any) -> Any:
        return 40 + 312 * (step - 1) / max(1, len(values) - 1)

    def y(value: Any) -> Any:
        return 190 - 180 * (value - low) / (high - low)

    def points(series: NDArray[np.float64]) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(series)))

    return {
        "note": note,
        "first": f"{smooth[0]:.2f}",
        "last": f"{smooth[-1]:.2f}",
        "raw": points(values),
        "smooth": points(smooth),
        "y_ticks": [{"y": round(float(y(np.float64(v))), 1), "label": f"{v:.2g}"} for v in np.linspace(low, high, 5)],
        "x_ticks": [
            {"x": round(float(x(np.float64(s))), 1), "label": str(s)}
            for s in sorted({1, *(round(len(values) * q) for q in (0.25, 0.5, 0.75, 1.0))} - {0})
        ],
    }
