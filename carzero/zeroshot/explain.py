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
from carzero.evaluate.boxes import Box
from carzero.models.decoder import SimRDecoder
from carzero.ops import pair_attention_heads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carzero.data.decode import ImageSource
    from carzero.models.carzero import CARZero


@dataclass(frozen=True)
class Region:
    """One connected part of a map at or above a threshold.

    Args:
        box: x0, y0, x1, y1 around it, in pixels of the original.
        peak: its greatest `Explanation.relative`.
        share: its part of the whole map's attention, 0..1.
    """

    box: Box
    peak: float
    share: float


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
        """x, y on the original of the centre of the patch with the greatest weight.

        A patch of the black padding has its centre outside the original.
        """
        rows, columns = self.map.shape
        row, column = divmod(int(self.map.argmax()), columns)
        side = self.geometry.size
        return self.geometry.to_original((column + 0.5) * side / columns, (row + 0.5) * side / rows)

    def on_image(self, *, smooth: bool = True) -> NDArray[np.float32]:
        """`relative` at the original's resolution, ``[height, width]``; 0 where the crop hid the image.

        Args:
            smooth: bilinear between the patches' centres; False shows the patches as they are.
        """
        return self.geometry.map_to_original(self.relative, smooth=smooth)

    def regions(self, threshold: float = 0.5, *, smooth: bool = True) -> list[Region]:
        """Connected parts of `on_image` of at least `threshold` times its maximum, the one with the highest peak first.

        Raises:
            UserError: the threshold is not above 0 and at most 1.
        """
        if not 0 < threshold <= 1:
            raise UserError(f"regions: threshold is a share of the maximum above 0 and at most 1, got {threshold}.")
        values = self.on_image(smooth=smooth)
        top = float(values.max())
        if top <= 0:
            return []
        count, parts, boxes, _ = cv2.connectedComponentsWithStats((values >= threshold * top).astype(np.uint8))
        flat, total = parts.ravel(), float(values.sum())
        sums = np.bincount(flat, values.ravel(), count)
        found = []
        for part in range(1, count):
            x, y, width, height = (int(v) for v in boxes[part, :4])
            inside = values[y : y + height, x : x + width][parts[y : y + height, x : x + width] == part]
            found.append(Region((x, y, x + width, y + height), float(inside.max()), float(sums[part]) / total))
        return sorted(found, key=lambda region: -region.peak)

    def overlay(self, ceiling: float | None = None, *, smooth: bool = True) -> NDArray[np.uint8]:
        """The image in grey under the attention in colour, RGB ``[height, width, 3]``.

        Args:
            ceiling: value of `relative` shown at full strength; the map's own maximum if None.
            smooth: as in `on_image`.
        """
        colour, opacity = coloured(self.on_image(smooth=smooth), ceiling or float(self.relative.max()))
        alpha = opacity[..., None]
        return ((1 - alpha) * self.image[..., None] + alpha * colour).round().astype(np.uint8)

    def save(
        self, path: str | Path, boxes: Iterable[Box] = (), *, found: Iterable[Box] = (), smooth: bool = True
    ) -> None:
        """Write a figure: the overlay with a colour bar, the prompt and its logit as title.

        Args:
            path: of the picture.
            boxes: outlined in blue: where the finding is known to be.
            found: outlined in white, dashed: such as the boxes of `regions`.
            smooth: as in `on_image`.
        """
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        height, width = self.image.shape
        figure = Figure(figsize=(6.0, 0.7 + 5.0 * min(2.0, height / width)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(self.overlay(smooth=smooth))
        axes.set_axis_off()
        axes.set_title(f"{self.prompt}\nlogit {self.logit:.2f}", fontsize=11, parse_math=False, wrap=True)
        for outlined, colour, line in ((boxes, "#35d0ff", "-"), (found, "#ffffff", "--")):
            for x0, y0, x1, y1 in outlined:
                axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, ls=line, lw=1.5))
        scale = ScalarMappable(Normalize(0, float(self.relative.max())), colormaps["inferno"])
        figure.colorbar(scale, ax=axes, label="attention, times the mean of all patches", shrink=0.85)
        figure.savefig(path, dpi=110)


class Explainer:
    """Attention maps of some prompts on any number of images; the prompts are encoded once.

    Equivalent to, for one image::

        logits, maps = model.decoder(images.memory, texts.query, return_attention=True)    # maps [L, 1, T, 1 + patches]
        maps[layers].mean(0)[0, :, 1:].reshape(T, rows, columns)

    Args:
        model: dropout is off whatever its mode.
        prompts: T texts.
        layers: decoder layers that are averaged; all if None (as published), negative ones count from the last.
        heads: attention heads that are averaged; all if None (as published), negative ones count from the last.

    Raises:
        UserError: the model has no decoder, its memory no local rows, or a layer or head does not exist.
    """

    def __init__(
        self,
        model: CARZero,
        prompts: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
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
        self.layers = _chosen("layers", layers, config.layers)
        self.heads = None if heads is None else _chosen("heads", heads, config.heads)
        self.model = model
        self.prompts = list(prompts)
        self.processor = ImageProcessor(size=model.config.image.image_size)
        self.bank = model.text_bank(self.prompts)

    @torch.no_grad()
    def __call__(self, image: ImageSource) -> list[Explanation]:
        """One explanation a prompt.

        Args:
            image: what `carzero.ImageProcessor` takes.

        Raises:
            ImageError: the image cannot be read.
        """
        model, queries = self.model, self.bank.encoded.query
        grey = self.processor.read(image)
        with model.evaluating():
            images = model.encode_images(self.processor.prepare(grey).unsqueeze(0))
            logits = model.similarity(images, self.bank)[0]
            if self.heads is None:
                maps = model.decoder(images.memory, queries, row_count=images.row_count, return_attention=True)[1]
            else:
                assert isinstance(model.decoder, SimRDecoder)
                weights = model.decoder.weights()
                every = pair_attention_heads(images.memory, queries, weights, row_count=images.row_count)
                maps = every[:, self.heads].mean(1)
        first = 1 if model.config.decoder.memory_rows == "global+local" else 0
        grid = model.image_encoder.grid
        chosen = maps[self.layers].float().mean(0)[0, :, first:].reshape(len(self.prompts), *grid).cpu().numpy()
        geometry = self.processor.geometry(*grey.shape)
        return [
            Explanation(prompt, float(logit), weight, grey, geometry)
            for prompt, logit, weight in zip(self.prompts, logits.tolist(), chosen)
        ]


def explain(
    model: CARZero,
    image: ImageSource,
    prompt: str,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Explanation:
    """Where `model` looked on `image` for `prompt`; see `Explainer`."""
    return Explainer(model, [prompt], layers=layers, heads=heads)(image)[0]


def explain_prompts(
    model: CARZero,
    image: ImageSource,
    prompts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Explanation]:
    """Attention maps of several prompts on one image; see `Explainer`, which many images should share."""
    return Explainer(model, prompts, layers=layers, heads=heads)(image)


def coloured(values: NDArray, ceiling: float) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Attention as colour, RGB ``[height, width, 3]``, and its opacity, 0 to 0.65 where values reach the ceiling."""
    strength = np.clip(values / ceiling, 0, 1)
    return cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1], 0.65 * strength  # type: ignore[return-value]


def _chosen(what: str, asked: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if asked is None else list(asked)
    if not chosen or not all(-count <= number < count for number in chosen):
        raise UserError(f"explain: {what} must name some of the decoder's {what} 0..{count - 1}, got {chosen}.")
    return chosen
