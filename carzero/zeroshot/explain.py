"""Where the model looked: the decoder's attention for a prompt, laid back over the radiograph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from carzero.data.geometry import ImageGeometry
from carzero.data.images import ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carzero.data.decode import ImageSource
    from carzero.models.carzero import CARZero

#: x0, y0, x1, y1 in pixels of the original image.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Explanation:
    """Attention of one prompt on one image.

    Args:
        prompt: the text.
        logit: its zero-shot score: the mean of the image-memory and the text-memory logit.
        map: float32 ``[rows, columns]`` of patches: the attention weight of each, averaged over heads and layers; the
            global row has the rest, so the sum is at most 1.
        image: uint8 ``[height, width]``, the original in grey.
        geometry: how the model's input lies on it.
    """

    prompt: str
    logit: float
    map: NDArray[np.float32]
    image: NDArray[np.uint8]
    geometry: ImageGeometry

    @property
    def relative(self) -> NDArray[np.float32]:
        """`map` over its mean: 1 is what a patch gets when the model looks at all alike."""
        return self.map / max(float(self.map.mean()), 1e-12)

    @property
    def peak(self) -> tuple[float, float]:
        """x, y on the original of the centre of the patch with the greatest weight."""
        rows, columns = self.map.shape
        row, column = divmod(int(self.map.argmax()), columns)
        side = self.geometry.size
        return self.geometry.to_original((column + 0.5) * side / columns, (row + 0.5) * side / rows)

    def on_image(self) -> NDArray[np.float32]:
        """`relative` at the original's resolution, ``[height, width]``; 0 where the crop hid the image."""
        return self.geometry.map_to_original(self.relative)

    def overlay(self, ceiling: float | None = None) -> NDArray[np.uint8]:
        """The image in grey under the attention in colour, RGB ``[height, width, 3]``.

        Args:
            ceiling: value of `relative` shown at full strength; the map's own maximum if None.
        """
        strength = np.clip(self.on_image() / (ceiling or float(self.relative.max())), 0, 1)
        colour = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        alpha = 0.65 * strength[..., None]
        return ((1 - alpha) * self.image[..., None] + alpha * colour).round().astype(np.uint8)

    def save(self, path: str | Path, boxes: Iterable[Box] = ()) -> None:
        """Write a figure: the overlay with a colour bar, the prompt and its logit as title, given boxes outlined."""
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        height, width = self.image.shape
        figure = Figure(figsize=(6.0, 0.7 + 5.0 * min(2.0, height / width)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(self.overlay())
        axes.set_axis_off()
        axes.set_title(f"{self.prompt}\nlogit {self.logit:.2f}", fontsize=11, parse_math=False)
        for x0, y0, x1, y1 in boxes:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#35d0ff", linewidth=1.5))
        scale = ScalarMappable(Normalize(0, float(self.relative.max())), colormaps["inferno"])
        figure.colorbar(scale, ax=axes, label="attention, times the mean of all patches", shrink=0.85)
        figure.savefig(path, dpi=110)


def explain(model: CARZero, image: ImageSource, prompt: str, *, layers: Sequence[int] | None = None) -> Explanation:
    """Where `model` looked on `image` for `prompt`; see `explain_prompts`."""
    return explain_prompts(model, image, [prompt], layers=layers)[0]


@torch.no_grad()
def explain_prompts(
    model: CARZero, image: ImageSource, prompts: Sequence[str], *, layers: Sequence[int] | None = None
) -> list[Explanation]:
    """Attention maps of several prompts on one image, which is encoded once; no gradient is needed.

    Equivalent to::

        logits, maps = model.decoder(images.memory, texts.query, return_attention=True)    # maps [L, 1, T, 1 + patches]
        maps[layers].mean(0)[0, :, 1:].reshape(T, rows, columns)

    Args:
        model: dropout is off whatever its mode.
        image: what `carzero.ImageProcessor` takes.
        prompts: T texts.
        layers: decoder layers that are averaged; all if None, negative ones count from the last.

    Raises:
        UserError: the model has no decoder, its memory no local rows, or a layer does not exist.
    """
    if model.config.similarity != "decoder":
        raise UserError(
            f"explain: maps are the decoder's attention, and this model has similarity={model.config.similarity!r}."
        )
    config = model.config.decoder
    if config.memory_rows == "global":
        raise UserError(
            "explain: this model attends to one global vector (decoder.memory_rows='global'), so there is no map; "
            "use a model with memory_rows 'global+local' or 'local'."
        )
    chosen = list(range(config.layers)) if layers is None else list(layers)
    if not chosen or not all(-config.layers <= layer < config.layers for layer in chosen):
        raise UserError(f"explain: layers must name some of the decoder's layers 0..{config.layers - 1}, got {chosen}.")
    processor = ImageProcessor(size=model.config.image.image_size)
    grey = processor.read(image)
    with model.evaluating():
        images = model.encode_images(processor(grey).unsqueeze(0))
        texts = model.encode_texts(list(prompts))
        logits = model.similarity(images, texts)[0]
        _, maps = model.decoder(images.memory, texts.query, row_count=images.row_count, return_attention=True)
    first = 1 if config.memory_rows == "global+local" else 0
    grid = model.image_encoder.grid
    weights = maps[chosen].float().mean(0)[0, :, first:].reshape(len(prompts), *grid).cpu().numpy()
    geometry = processor.geometry(*grey.shape)
    return [
        Explanation(prompt, float(logit), weight, grey, geometry)
        for prompt, logit, weight in zip(prompts, logits.tolist(), weights)
    ]


def inside(point: tuple[float, float], boxes: Iterable[Box]) -> bool:
    """Whether a point lies in any of the boxes."""
    return any(x0 <= point[0] <= x1 and y0 <= point[1] <= y1 for x0, y0, x1, y1 in boxes)


def pointing_accuracy(peaks: Sequence[tuple[float, float]], boxes: Sequence[Sequence[Box]]) -> float:
    """Share of maps whose peak lies inside any box of its finding (the pointing game); NaN for no map.

    Args:
        peaks: `Explanation.peak` of N maps.
        boxes: the boxes of each map's finding.
    """
    if len(peaks) != len(boxes):
        raise ValueError(f"pointing_accuracy: one list of boxes per peak, got {len(boxes)} for {len(peaks)} peaks.")
    return float(np.mean([inside(p, b) for p, b in zip(peaks, boxes)])) if peaks else float("nan")
