"""Scores of many texts for the images of a subject, in one pass over the images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carzero.assess.subject import Subject
from carzero.errors import UserError
from carzero.evaluate.tables import Predictions
from carzero.models.carzero import CARZero
from carzero.prompts.sets import PromptSet
from carzero.zeroshot.classify import ZeroShotClassifier


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


def score(
    model: CARZero, subject: Subject, prompt_sets: Sequence[PromptSet], *, batch_size: int = 16,
    device: str | None = None,
) -> Scores:  # fmt: skip
    """Score the images against every text of several prompt sets; each image is encoded once.

    Raises:
        UserError: an image cannot be scored: figures of the rest would be of another set of images.
    """
    texts = tuple(dict.fromkeys(text for prompts in prompt_sets for text in prompts.texts))
    names = tuple(str(i) for i in range(len(texts)))
    classifier = ZeroShotClassifier(
        model, PromptSet(names, tuple((t,) for t in texts)), batch_size=batch_size, device=device
    )
    table = classifier.predict(subject.images)
    for sentence in classifier.warnings[:5]:
        print(f"carzero: warning: {sentence}", file=sys.stderr)
    if not classifier.failures.empty:
        listed = [f"{name} ({reason})" for name, reason in classifier.failures.head(5).itertuples(index=False)]
        raise UserError(
            f"{len(classifier.failures)} of {len(subject.images)} images could not be scored: {'; '.join(listed)}. "
            "Mend them, or leave them out of the labels."
        )
    return Scores(texts, table[list(names)].to_numpy(np.float64))


def predictions(subject: Subject, scores: Scores, pool: str = "mean") -> Predictions:
    """Scores of the subject's own prompts, to be joined to its labels."""
    prompts = subject.prompts
    return Predictions("the model's scores", list(subject.labels.images), prompts.classes, scores.of(prompts, pool))
