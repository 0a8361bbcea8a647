"""Wordings with gaps, found in a row of words: "hemidiaphragm ~ elevated"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST = {"~": 6, "~~": 8}
MOST_NORMAL = 12


class Slot(NamedTuple):
    """One place of a wording: which words fit, and whether it may be empty; or a gap of up to `most` words.

    Args:
        words: lower case; for a gap those that may not stand in it.
        optional: the place may be empty.
        most: None for a place of one word.
    """

    words: frozenset[str]
    optional: bool = False
    most: int | None = None


def find(slots: Sequence[Slot], words: Sequence[str], start: int) -> int | None:
    """The end of the shortest match that begins at `start`; None if there is none."""
    if not slots:
        return start
    slot, rest = slots[0], slots[1:]
    if slot.most is not None:
        for at in range(start, min(start + slot.most, len(words)) + 1):
            end = find(rest, words, at)
            if end is not None:
                return end
            if at == len(words) or words[at] in slot.words:
                return None
        return None
    if start < len(words) and words[start] in slot.words:
        end = find(rest, words, start + 1)
        if end is not None:
            return end
    return find(rest, words, start) if slot.optional else None


class GapMatcher:
    """All matches of many wordings in a text.

    Args:
        patterns: (label, slots) each; the first slot is a word.
    """

    def __init__(self, patterns: Iterable[tuple[str, Sequence[Slot]]]) -> None:
        self._by_first: dict[str, list[tuple[str, Sequence[Slot]]]] = {}
        for label, slots in patterns:
            for word in slots[0].words:
                self._by_first.setdefault(word, []).append((label, slots))

    def __call__(self, words: Sequence[str]) -> list[tuple[str, int, int]]:
        """(label, start, end) of each match, the shortest from its start."""
        found = []
        for start, word in enumerate(words):
            for label, slots in self._by_first.get(word, ()):
                end = find(slots[1:], words, start + 1)
                if end is not None:
                    found.append((label, start, end))
        return found
