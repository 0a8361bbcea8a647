"""What a report says, taken apart: one statement a mention of a finding, and its standard sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Places that sentences name: singular -> plural, for both sides.
PLACES = {
    "base": "bases", "apex": "apices", "upper lobe": "upper lobes", "middle lobe": "middle lobes",
    "lower lobe": "lower lobes", "lingula": "lingula", "upper lung": "upper lungs", "mid lung": "mid lungs",
    "lower lung": "lower lungs", "lung": "lungs", "perihilar region": "perihilar regions", "hilum": "hila",
    "retrocardiac region": "retrocardiac regions", "costophrenic angle": "costophrenic angles",
    "paratracheal region": "paratracheal regions", "thoracic spine": "thoracic spine", "lumbar spine": "lumbar spine",
    "cervical spine": "cervical spine", "thoracolumbar spine": "thoracolumbar spine", "ribs": "ribs",
    "clavicle": "clavicles", "shoulder": "shoulders", "humerus": "humeri", "mediastinum": "mediastinum",
}  # fmt: skip
SIDES = ("left", "right", "bilateral")
SEVERITIES = ("borderline", "tiny", "minimal", "small", "mild", "small to moderate", "mild to moderate", "moderate",
              "moderate to large", "moderate to severe", "large", "severe")  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """One finding that a report affirms or denies.

    Args:
        finding: its name in the lexicon.
        negated: the report says it is absent, or has resolved.
        uncertain: the report says it with "may", "possible", "cannot be excluded" and the like.
        severity: one of `SEVERITIES`, or None.
        side: one of `SIDES`, or None.
        location: one of `PLACES`, or None.
        change: new, worse, better, stable or resolved against an earlier image, or None; not part of the sentence.
        start, end: characters of the report that hold the mention; -1 where an engine could not place it.
        review: why a person should look at it; empty where nothing speaks against it.
    """

    finding: str
    negated: bool = False
    uncertain: bool = False
    severity: str | None = None
    side: str | None = None
    location: str | None = None
    change: str | None = None
    start: int = -1
    end: int = -1
    review: str = ""

    @property
    def aligned(self) -> str:
        """`There is <severity> <side> <finding> in the <location>.` or `There is no ... .`"""
        opening = "no" if self.negated else "possible" if self.uncertain else ""
        where = ""
        if self.location is not None:
            if self.side == "bilateral":
                plural = PLACES[self.location]
                where = f"in {'the' if plural == self.location else 'both'} {plural}"
            else:
                where = f"in the {self.side or ''} {self.location}"
        side = "" if self.location is not None else self.side
        return " ".join(f"There is {opening} {self.severity or ''} {side or ''} {self.finding} {where}".split()) + "."

    def as_dict(self) -> dict[str, Any]:
        """All fields and the aligned sentence."""
        return {**asdict(self), "aligned": self.aligned}


@dataclass(frozen=True)
class AlignedReport:
    """A report as standard sentences.

    Args:
        statements: in the order of the report.
        unaligned: sentences, or rejected answers with their reason, from which no statement was made.
    """

    statements: tuple[Statement, ...] = ()
    unaligned: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """The aligned sentences, each once."""
        return list(dict.fromkeys(statement.aligned for statement in self.statements))

    @property
    def text(self) -> str:
        """The aligned sentences in a row."""
        return " ".join(self.sentences)
