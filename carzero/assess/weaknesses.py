"""Which prompts a check for a known weakness asks, and its figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from carzero.assess.scoring import Scores
from carzero.assess.subject import SIDES, Subject
from carzero.errors import UserError
from carzero.evaluate import checks
from carzero.evaluate.tables import Sample
from carzero.prompts.sets import PromptSet

CHECKS = ("negation", "normal", "wording", "laterality")
#: What is said of an image without a finding.
NORMAL = ("There is no acute abnormality", "The lungs are clear", "The chest is normal")
#: Ways to ask for a finding; the first is the published one.
WORDINGS = (
    "There is {finding}", "{finding}", "{finding} is present", "{finding} is seen", "Evidence of {finding}",
    "Findings consistent with {finding}",
)  # fmt: skip


def prompts_of(check: str, subject: Subject) -> list[PromptSet]:
    """The prompt sets that a check asks besides the subject's own."""
    prompts = subject.prompts
    if check == "negation":
        return [prompts.negated()]
    if check == "normal":
        return [PromptSet(("normal",), (NORMAL,))]
    if check == "wording":
        return [PromptSet.from_findings(_findings(prompts), template) for template in WORDINGS]
    sided = _sided(subject)
    return [
        PromptSet(sided.classes, tuple((f"There is {side} {f}",) for f in _findings(sided).values())) for side in SIDES
    ]


def run_check(
    check: str, subject: Subject, scores: Scores, sample: Sample, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Figures of one check.

    Args:
        subject: what was scored, for `prompts_of` the check too.
        sample: the subject's images in order, its classes' scores and labels.
    """
    asked = [scores.of(prompts) for prompts in prompts_of(check, subject)]
    if check == "negation":
        return checks.negation(sample, asked[0], resamples=resamples, seed=seed)
    if check == "normal":
        return checks.normality(sample, asked[0][:, 0], resamples=resamples, seed=seed)
    if check == "wording":
        return checks.wording(sample, dict(zip(WORDINGS, asked)), resamples=resamples, seed=seed)
    classes = _sided(subject).classes
    sides = []
    for side, values in zip(SIDES, asked):
        labels = subject.labels.table[[f"{name}, {side}" for name in classes]].to_numpy(np.float64)
        labels = np.where(labels == -1, np.nan, labels)
        sides.append(Sample(sample.images, classes, labels, values, sample.patient, sample.study))
    return checks.laterality(sides[0], sides[1], resamples=resamples, seed=seed)


def _findings(prompts: PromptSet) -> dict[str, str]:
    """Each class as a sentence names it: its first prompt without "There is"."""
    return {
        name: texts[0][len("there is ") :] if texts[0].lower().startswith("there is ") else name
        for name, texts in zip(prompts.classes, prompts.prompts)
    }


def _sided(subject: Subject) -> PromptSet:
    """The classes whose sides the labels name."""
    columns = set(subject.labels.table.columns)
    prompts = subject.prompts
    kept = [c for c, name in enumerate(prompts.classes) if {f"{name}, {side}" for side in SIDES} <= columns]
    if not kept:
        raise UserError(
            "--laterality needs to know sides: label columns 'X, left' and 'X, right' for a class X, or --drawn."
        )
    return PromptSet(tuple(prompts.classes[c] for c in kept), tuple(prompts.prompts[c] for c in kept))
