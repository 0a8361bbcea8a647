"""A model's answer held against the report that it is about."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from carzero.prompts import cues
from carzero.prompts.rules import RulesEngine
from carzero.prompts.statement import PLACES, SEVERITIES, Statement


class AnswerStatement(BaseModel):
    """One statement as a model returns it; all fields are asked for, as strict JSON schemas want it."""

    model_config = ConfigDict(extra="forbid")
    finding: str
    negated: bool
    uncertain: bool
    severity: str | None
    side: Literal["left", "right", "bilateral"] | None
    location: str | None
    quote: str


class Answer(BaseModel):
    """What a model returns for a report."""

    model_config = ConfigDict(extra="forbid")
    statements: list[AnswerStatement]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What of an answer stands.

    Args:
        statements: those that the report bears out; ``review`` says where the rules engine reads a negation otherwise.
        objections: a sentence for each that it does not, and for each finding that the answer leaves out.
    """

    statements: tuple[Statement, ...]
    objections: tuple[str, ...]


class Verifier:
    """Checks answers by the rules engine's lexicon and reading."""

    def __init__(self, engine: RulesEngine | None = None) -> None:
        self.engine = engine or RulesEngine()

    def __call__(self, answer: Answer, report: str) -> Verdict:
        """Hold every statement against the report.

        A statement stands where its quote is in the report, the quote's sentence holds the finding by one of its names
        and the words of its side, severity and place. A negation that the rules engine reads otherwise is marked for
        review.
        """
        read = self.engine(report).statements
        kept, objections = [], []
        for said in answer.statements:
            statement, objection = self._check(said, report, read)
            if statement is None:
                objections.append(f"{said.finding!r} ({said.quote!r}): {objection}")
            else:
                kept.append(statement)
        named = {s.finding for s in kept}
        left_out = dict.fromkeys(s.finding for s in read if not any(self._related(s.finding, name) for name in named))
        objections += [f"{finding!r}: the report speaks of it and the answer leaves it out." for finding in left_out]
        return Verdict(tuple(dict.fromkeys(kept)), tuple(objections))

    def _check(self, said: AnswerStatement, report: str, read: Sequence[Statement]) -> tuple[Statement | None, str]:
        span = _find(said.quote, report)
        if span is None:
            return None, "the quote is not in the report."
        start, end = span
        first, last = _sentence(report, start, end)
        around = report[first:last]
        known = self.engine.lexicon.named(said.finding)
        name = " ".join(said.finding.lower().split())
        if known is not None:
            name = known.name
            mentions = [s for s in read if s.start < last and s.end > first and self._related(s.finding, name)]
            if not mentions:
                return None, "the quoted sentence does not name it, by any of its names."
        else:
            mentions = []
            if not _says(around, [name]):
                return None, "it is no finding of the lexicon, and the quoted sentence does not hold these words."
        for what, value, table in (
            ("side", said.side, cues.SIDE),
            ("severity", said.severity, cues.SEVERITY),
            ("location", said.location, cues.PLACE),
        ):
            if value is None:
                continue
            if value not in table:
                return None, f"the {what} {value!r} is not one of {', '.join(table)}."
            both = what == "side" and value == "bilateral" and _says(around, ["left"]) and _says(around, ["right"])
            if not both and not _says(around, table[value]):
                return None, f"the quoted sentence does not say the {what} {value!r}."
        overlapping = [s for s in mentions if s.start < end and s.end > start] or mentions
        review = ""
        if known is None:
            review = "no finding of the lexicon: its negation is not checked"
        elif all(s.negated != said.negated for s in overlapping):
            review = f"the rules engine reads it as {'affirmed' if said.negated else 'denied'}"
        return (
            Statement(
                name, said.negated, said.uncertain and not said.negated, said.severity, said.side, said.location,
                start=start, end=end, review=review,
            ),
            "",
        )  # fmt: skip

    def _related(self, one: str, other: str) -> bool:
        lexicon = self.engine.lexicon
        if one not in lexicon.findings or other not in lexicon.findings:
            return one == other
        return lexicon.is_a(one, other) or lexicon.is_a(other, one)


def _find(quote: str, report: str) -> tuple[int, int] | None:
    """Where the quote stands, whatever its case and white space."""
    words = quote.split()
    if not words:
        return None
    match = re.search(r"\s+".join(map(re.escape, words)), report, re.IGNORECASE)
    return None if match is None else match.span()


def _sentence(report: str, start: int, end: int) -> tuple[int, int]:
    """The sentences that hold a span."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$|[A-Z])|\n", report)]
    first = max((e for e in ends if e <= start), default=0)
    last = min((e for e in ends if e >= end), default=len(report))
    return first, last


def _says(text: str, phrases: Sequence[str]) -> bool:
    """Whether one of the phrases stands in the text as whole words; hyphens and slashes are spaces."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "
    return any(f" {' '.join(re.findall(r'[a-z0-9]+', phrase.lower()))} " in words for phrase in phrases)


#: the places and severities that an answer may name, as the prompt lists them
PLACE_NAMES, SEVERITY_NAMES = ", ".join(PLACES), ", ".join(SEVERITIES)
