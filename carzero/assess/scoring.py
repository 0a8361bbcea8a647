"""Scores of many texts for the images of a subject, in one pass over the images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from carzero.assess.subject import Subject
from carzero.data.files import ImageFile
from carzero.errors import UserError
from carzero.evaluate.tables import Predictions
from carzero.models.carzero import CARZero
from carzero.prompts.sets import PromptSet
from carzero.train.ranks import Ranks
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.parts import classify_parts


@dataclass(frozen=True)
class Scores:
    """Logits of N images for some texts.

    Args:
        texts: T texts, each once.
        logits: float64 ``[N, T]``.
    """

    texts: tuple[str, ...]
    logits: NDArray[np.float64]

    def of(self, prompts: PromptSet, pool: str = "mean") -> NDArray[np.float64]:
        """Scores ``[N, C]`` of classes, their prompts pooled by ``mean`` or ``max``."""
        at = {text: column for column, text in enumerate(self.texts)}
        parts = [self.logits[:, [at[text] for text in texts]] for texts in prompts.prompts]
        return np.stack([part.mean(1) if pool == "mean" else part.max(1) for part in parts], axis=1)


@dataclass(frozen=True)
class InParts:
    """How processes share the scoring, and a kill costs little; see `carzero.zeroshot.parts`.

    Args:
        folder: where the parts lie.
        size: images of a part.
        weights: what the scores are of.
        ranks: the processes.
    """

    folder: Path
    size: int
    weights: str
    ranks: Ranks


def score(
    model: CARZero, subject: Subject, prompt_sets: Sequence[PromptSet], *, batch_size: int = 16,
    device: str | None = None, parts: InParts | None = None,
) -> Scores | None:  # fmt: skip
    """Score the images against every text of several prompt sets; each image is encoded once.

    Args:
        parts: score in parts that the processes share; all but the first then get None.

    Raises:
        UserError: an image cannot be scored: figures of the rest would be of another set of images.
    """
    texts = tuple(dict.fromkeys(text for prompts in prompt_sets for text in prompts.texts))
    names = tuple(str(i) for i in range(len(texts)))
    classifier = ZeroShotClassifier(
        model, PromptSet(names, tuple((t,) for t in texts)), batch_size=batch_size, device=device
    )
    table: pd.DataFrame | None
    if parts is None:
        table = classifier.predict(subject.images)
    else:
        files = [image for image in subject.images if isinstance(image, ImageFile)]
        table = classify_parts(
            classifier, files, parts.folder, weights=parts.weights, size=parts.size, ranks=parts.ranks
        )
    for sentence in classifier.warnings[:5]:
        print(f"carzero: warning: {sentence}", file=sys.stderr)
    if table is None:
        return None
    if not classifier.failures.empty:
        listed = [f"{name} ({reason})" for name, reason in classifier.failures.head(5).itertuples(index=False)]
        raise UserError(
            f"{len(classifier.failures)} of {len(subject.images)} images could not be scored: {'; '.join(listed)}. "
            f"Mend them{f' and remove {parts.folder}' if parts else ''}, or leave them out of the labels."
        )
    return Scores(texts, table[list(names)].to_numpy(np.float64))


def predictions(subject: Subject, scores: Scores, pool: str = "mean") -> Predictions:
    """Scores of the subject's own prompts, to be joined to its labels."""
    prompts = subject.prompts
    return Predictions("the model's scores", list(subject.labels.images), prompts.classes, scores.of(prompts, pool))
