"""One model that answers about one radiograph at a time: scores, what they mean, and where it looked."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from carzero.app.asking import denial
from carzero.errors import UserError
from carzero.prompts import PromptSet
from carzero.zeroshot.classify import ZeroShotClassifier
from carzero.zeroshot.explain import Explainer, Explanation
from carzero.zeroshot.reference import fingerprint

if TYPE_CHECKING:
    from carzero.app.radiograph import Radiograph
    from carzero.models.carzero import CARZero
    from carzero.zeroshot.reference import ScoreReference


@dataclass(frozen=True)
class Answer:
    """What the model says of one finding.

    Args:
        finding, prompt: as typed, and as asked.
        logit: of the prompt.
        denial, denial_logit: of the prompt that denies it; None where none is known.
        quantile: share of the reference set that scores lower, 0..1; None where it was not asked this prompt.
        probability: calibrated, 0..1; None without a calibration.
        calibrated: on patients not fitted on, the probability erred less than a constant does.
    """

    finding: str
    prompt: str
    logit: float
    denial: str | None = None
    denial_logit: float | None = None
    quantile: float | None = None
    probability: float | None = None
    calibrated: bool = False

    @property
    def margin(self) -> float | None:
        """How far the prompt scores above its denial, in logits."""
        return None if self.denial_logit is None else self.logit - self.denial_logit


@dataclass(frozen=True, eq=False)
class Reading:
    """All answers on one radiograph, in the order asked; maps are kept once they were looked at."""

    radiograph: Radiograph
    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()
    maps: dict[int, tuple[Explanation, Explanation | None]] = field(default_factory=dict)


class Desk:
    """Scores radiographs with one model; calls from several threads wait for one another.

    Args:
        model: a `CARZero`.
        reference: of its scores, as `carzero calibrate` writes it; None: logits stand alone.
        device: where to compute, as in `ZeroShotClassifier`.

    Raises:
        UserError: the reference belongs to other weights, or there is no such device.
    """

    def __init__(self, model: CARZero, reference: ScoreReference | None = None, *, device: str | None = None) -> None:
        if reference is not None and reference.model != fingerprint(model):
            raise UserError(
                "The reference of scores belongs to other weights than these: make it again with `carzero calibrate`."
            )
        self.model, self.reference = model, reference
        self._classes = _classes_by_prompt(reference)
        self._lock = threading.Lock()
        # texts are encoded once for all radiographs that are asked the same; float32 as beside the maps
        self._classifier = lru_cache(4)(
            lambda texts: ZeroShotClassifier(model, texts, workers=0, device=device, dtype=torch.float32)
        )
        # a device that does not exist is said now
        self._classifier(self.known or ("There is effusion",))

    @property
    def known(self) -> tuple[str, ...]:
        """Prompts that the reference set was asked, which therefore have quantiles."""
        return tuple(self._classes)

    @property
    def maps(self) -> bool:
        """Whether this model has attention to show."""
        return self.model.config.similarity == "decoder" and self.model.config.decoder.memory_rows != "global"

    def read(self, radiograph: Radiograph, prompts: PromptSet) -> Reading:
        """Score a radiograph.

        *Equivalent to* ``ZeroShotClassifier(model, texts, dtype=torch.float32).predict([grey])``, where texts are
        prompts and their denials.

        Args:
            radiograph: of `carzero.app.radiograph`.
            prompts: one prompt a class.

        Raises:
            UserError: a prompt is empty after the model's text cleaning, or the scores are not finite.
        """
        from carzero.prompts.lint import lint

        asked = [texts[0] for texts in prompts.prompts]
        denials = [denial(prompt) for prompt in asked]
        texts = tuple(dict.fromkeys([*asked, *(text for text in denials if text is not None)]))
        with self._lock:
            classifier = self._classifier(texts)
            table = classifier.predict([radiograph.grey])
            if len(table) == 0:
                raise UserError(f"This image {classifier.failures['reason'][0]}.")
        logits: dict[str, float] = {text: float(table[text][0]) for text in texts}
        answers = [
            Answer(
                finding, prompt, logits[prompt], denied, None if denied is None else logits[denied],
                *self._meaning(prompt, logits[prompt]),
            )
            for finding, prompt, denied in zip(prompts.classes, asked, denials)
        ]  # fmt: skip
        return Reading(radiograph, tuple(answers), tuple(lint(prompts)))

    def look(self, reading: Reading, number: int) -> tuple[Explanation, Explanation | None]:
        """Where the model looked for a finding, and for its denial if there is one.

        Raises:
            UserError: the model has no maps, see `Explainer`.
        """
        if number not in reading.maps:
            answer = reading.answers[number]
            texts = [answer.prompt] if answer.denial is None else [answer.prompt, answer.denial]
            with self._lock:
                maps = Explainer(self.model, texts)(reading.radiograph.grey)
            reading.maps[number] = (maps[0], maps[1] if len(maps) > 1 else None)
        return reading.maps[number]

    def _meaning(self, prompt: str, logit: float) -> tuple[float | None, float | None, bool]:
        """Quantile and probability of a logit, where the reference knows the prompt, and whether it is any good."""
        name = self._classes.get(prompt)
        if self.reference is None or name is None:
            return None, None, False
        quantile = float(self.reference.quantile(name, [logit])[0])
        calibration = self.reference.calibrations.get(name)
        if calibration is None:
            return quantile, None, False
        return quantile, float(calibration([logit])[0]), calibration.brier < calibration.brier_constant


def _classes_by_prompt(reference: ScoreReference | None) -> Mapping[str, str]:
    """Prompt -> class, for the classes that have a single prompt: the page asks one a finding."""
    if reference is None:
        return {}
    return {texts[0]: name for name, texts in reference.prompts.items() if len(texts) == 1}
