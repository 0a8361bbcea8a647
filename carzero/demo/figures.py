"""What the demo measures: each row a question asked of held-out drawings, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from carzero.data.phantom import Phantom
from carzero.demo.phantoms import label_matrix
from carzero.evaluate import Interval, auroc_interval, macro_auroc_interval
from carzero.evaluate.grounding import pointing_accuracy
from carzero.models.carzero import CARZero
from carzero.prompts.sets import PromptSet
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.explain import explain_prompts


@dataclass(frozen=True)
class Scored:
    """Logits of the held-out images for some prompts.

    Args:
        keys: what each column asks for: a finding or a (finding, side) pair.
        prompts: the text of each column.
        labels: bool ``[N, C]``.
        logits: float32 ``[N, C]``.
    """

    keys: list[Any]
    prompts: list[str]
    labels: NDArray[np.bool_]
    logits: NDArray[np.float32]

    def macro(self, resamples: int) -> Interval:
        """Mean AUROC over the columns."""
        return macro_auroc_interval(self.labels, self.logits, resamples=resamples)

    def only(self, keys: Sequence[Any]) -> Scored:
        """Some of the columns."""
        at = [self.keys.index(key) for key in keys]
        return Scored(list(keys), [self.prompts[i] for i in at], self.labels[:, at], self.logits[:, at])


def score(model: CARZero, phantoms: list[Phantom], prompts: Mapping[Any, str]) -> Scored:
    """Score the phantoms with `ZeroShotClassifier`, one prompt a class."""
    keys, texts = list(prompts), list(prompts.values())
    names = tuple(str(number) for number in range(len(keys)))
    classifier = ZeroShotClassifier(
        model, PromptSet(names, tuple((t,) for t in texts)), batch_size=64, workers=0, dtype=torch.float32
    )
    table = classifier.predict([p.image for p in phantoms])
    return Scored(keys, texts, label_matrix(phantoms, keys), table[list(names)].to_numpy(np.float32))


def by_finding(scored: Scored, resamples: int) -> dict[str, Interval]:
    """AUROC of each column."""
    return {
        key: auroc_interval(scored.labels[:, c], scored.logits[:, c], resamples=resamples)
        for c, key in enumerate(scored.keys)
    }


def side_against_side(scored: Scored) -> float:
    """Mean AUROC of (finding, side) columns among the images that have the finding on one side only.

    An image with the finding on the other side is the hardest negative: 0.5 is a model that knows no sides.
    """
    values = []
    for c, (name, side) in enumerate(scored.keys):
        other = (name, "right" if side == "left" else "left")
        if other not in scored.keys:
            continue
        o = scored.labels[:, scored.keys.index(other)]
        rows = scored.labels[:, c] ^ o
        values.append(auroc_interval(scored.labels[rows, c], scored.logits[rows, c], resamples=1).value)
    return float(np.nanmean(values))


def negated_twins(positive: Scored, negative: Scored, resamples: int) -> tuple[Interval, float]:
    """How "There is no X" behaves.

    Args:
        positive, negative: the findings asked for with "There is X" and with "There is no X".

    Returns:
        macro AUROC of the negated prompt's logit for the finding's absence (0.5 is chance, below it the model reads
        only X), and how often the two prompts of an image rank as they should, as the AUROC of their difference.
    """
    absence = macro_auroc_interval(~positive.labels, negative.logits, resamples=resamples)
    difference = macro_auroc_interval(positive.labels, positive.logits - negative.logits, resamples=1)
    return absence, difference.value


def pointing(model: CARZero, phantoms: list[Phantom], prompts: Mapping[str, str], *, most: int) -> dict[str, float]:
    """Share of images, up to `most` a finding, whose attention peak lies in a drawn box of that finding."""
    shares = {}
    for name, prompt in prompts.items():
        having = [p for p in phantoms if p.labels[name]][:most]
        peaks = [explain_prompts(model, p.image, [prompt])[0].peak for p in having]
        boxes = [[f.box for f in p.findings if f.name == name] for p in having]
        shares[name] = pointing_accuracy(peaks, boxes)
    return shares
