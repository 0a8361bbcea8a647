"""Reports cut into the sentences that training draws from, and texts with left and right exchanged."""

from __future__ import annotations

import re

from carzero.models.text import clean_text

# a full stop, question or exclamation mark, or semicolon before white space, or a line break: "1.5 cm" stays whole
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_SIDES = {
    "left": "right", "right": "left", "lt": "rt", "rt": "lt", "leftward": "rightward", "rightward": "leftward",
    "left-sided": "right-sided", "right-sided": "left-sided", "levoscoliosis": "dextroscoliosis",
    "dextroscoliosis": "levoscoliosis",
}  # fmt: skip
_SIDE = re.compile(rf"\b({'|'.join(sorted(_SIDES, key=len, reverse=True))})\b", re.IGNORECASE)
#: The published code stops at the sentence that makes the words of a report exactly this many.
_PUBLISHED_STOP = 5


def sentences(report: str) -> list[str]:
    """The sentences of a report that hold a word, without the enumeration before them."""
    parts = (re.sub(r"^\s*\d+\.\s*", "", part).strip() for part in _SENTENCE_END.split(report))
    return [part for part in parts if any(c.isalpha() for c in part)]


def published_sentences(report: str) -> list[str]:
    """The sentences that the authors' code keeps: cut at every full stop, without those of one word.

    Where the first sentences have exactly five words together, all later ones are dropped, as there.

    Source: published file ``CARZero/datasets/pretraining_dataset.py``, ``create_path_2_sent_mapping``.
    """
    kept: list[str] = []
    words = 0
    for part in re.split(r"[0-9]+\.|\.", report.replace("\n", " ")):
        cleaned = clean_text(part, "published")
        if not cleaned:
            continue
        kept.append(cleaned)
        words += len(cleaned.split())
        if words == _PUBLISHED_STOP:
            break
    return kept


def swap_sides(text: str) -> str:
    """The text for the mirrored image: left becomes right and right left, in the case they are written in."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        swapped = _SIDES[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE.sub(other, text)
