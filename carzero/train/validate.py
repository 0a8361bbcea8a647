"""Zero-shot AUROC of the model as it is, on a labelled set, shared by all ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from carzero.data.dataset import absolute, check_files, read_table
from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.evaluate import auroc
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.decoder import SimRDecoder
from carzero.ops.packing import PackCache
from carzero.prompts.sets import load_prompts
from carzero.train.config import Validation
from carzero.train.ranks import Ranks


class Validator:
    """Scores a labelled set against prompts; draws no random number, so the run goes on as if it had not.

    Args:
        settings: where the set is and when it is due; nothing is done where no manifest is given.
        model: of its configuration the image size is read.
        ranks: each scores its share.

    Raises:
        UserError: the table or the prompts cannot be read, a class has no column of labels, a label is neither 0, 1
            nor empty, or a class has no positive or no negative.
    """

    def __init__(self, settings: Validation, model: CARZeroConfig, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.active = settings.manifest is not None
        if settings.manifest is None or settings.prompts is None:
            return
        self.prompts = load_prompts(Path(settings.prompts))
        self.processor = ImageProcessor(size=model.image.image_size)
        path = Path(settings.manifest)
        table = read_table(path)
        if settings.split is not None:
            if "split" not in table.columns:
                raise UserError(
                    f"train: {path} has no column split, but validation.split {settings.split!r} was asked for."
                )
            table = table[table["split"] == settings.split]
        missing = [name for name in ("image", *self.prompts.classes) if name not in table.columns]
        if missing:
            raise UserError(
                f"train: {path} lacks the column {missing[0]!r}; validation needs image and a column of 0 and 1 for "
                f"each class of {settings.prompts}; it has {', '.join(map(str, table.columns))}."
            )
        self.images = absolute(table["image"], path)
        check_files(self.images, path)
        self.labels = np.stack([_labels(table[name], name, path) for name in self.prompts.classes], 1)

    def describe(self) -> str:
        """The set in one line."""
        return (
            f"{len(self.images)} images, {len(self.prompts)} classes from {self.settings.manifest}, every "
            f"{self.settings.every} steps"
        )

    def due(self, step: int, steps: int) -> bool:
        """Whether it is made after this step."""
        return self.active and (step % self.settings.every == 0 or step == steps)

    def __call__(self, model: CARZero, *, dtype: torch.dtype, backend: str) -> dict[str, float]:
        """AUROC of each class and ``macro``, their mean; all ranks call and get the same."""
        _forget_packed(model)
        sizes = self.ranks.sizes(len(self.images))
        mine = range(len(self.images))[self.ranks.part(len(self.images))]
        scores = []
        size = self.settings.batch_size
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            bank = model.text_bank(self.prompts.texts)
            # as many calls on each rank, for sharded weights are gathered by all
            for start in range(0, max(sizes), size):
                part = mine[start : start + size] or [0]
                pixels = torch.stack([self.processor(self.images[i]) for i in part])
                logits = model.similarity(pixels, bank, batch_size=size, backend=backend)
                scores.append(logits.float().cpu()[: max(0, len(mine) - start)])
        _forget_packed(model)
        every = np.concatenate(self.ranks.objects(torch.cat(scores).numpy()))
        pooled = np.stack([s.mean(1) for s in np.split(every, np.cumsum(self.prompts.sizes)[:-1], axis=1)], 1)
        found = {
            name: _auroc(self.labels[:, c], pooled[:, c]) for c, name in enumerate(self.prompts.classes)
        }  # fmt: skip
        return {"macro": float(np.mean(list(found.values()))), **found}


def _forget_packed(model: CARZero) -> None:
    """Sharded weights lie at an old address with new values, which the decoder's cache by address does not see."""
    if isinstance(model.decoder, SimRDecoder):
        model.decoder._packed = PackCache()


def _auroc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    known = ~np.isnan(labels)
    if not np.isfinite(scores).all():
        return float("nan")
    return auroc(labels[known].astype(int), scores[known])


def _labels(column: pd.Series, name: str, path: Path) -> NDArray[np.float64]:
    """0, 1 and NaN where a label is not known."""
    values = pd.to_numeric(column.replace("", np.nan), errors="coerce").to_numpy(np.float64)
    unread = column[(np.isnan(values)) & column.notna() & (column != "")]
    wrong = [*unread.astype(str), *map(str, values[~np.isnan(values) & ~np.isin(values, (0, 1))])]
    if wrong:
        raise UserError(f"train: {path} has labels of {name!r} other than 0, 1 and empty: {', '.join(wrong[:3])}.")
    for value, word in ((1, "positive"), (0, "negative")):
        if not (values == value).any():
            raise UserError(f"train: {path} has no {word} image of {name!r}, so its AUROC is not defined.")
    return values
