"""The lexicon: findings, what they are called, and the token patterns that find them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from carzero.errors import UserError
from carzero.prompts import cues
from carzero.prompts.gaps import MOST, MOST_NORMAL, Slot

#: the lexicon that comes with the package; its head explains the notation
PATH = Path(__file__).with_name("lexicon.txt")


@dataclass(frozen=True)
class Pattern:
    """One wording of a finding.

    Args:
        text: as the lexicon has it.
        absent: the wording says that the finding is absent.
    """

    text: str
    absent: bool = False

    @property
    def gapped(self) -> bool:
        """Whether words may stand between the wording's own."""
        return "~" in self.text

    @property
    def phrases(self) -> list[str]:
        """The wording written out, singular first; nothing for a wording with gaps."""
        if self.gapped:
            return []
        slots = []
        for word in self.text.split():
            forms = _forms(word.removesuffix("?"))
            slots.append(["", *forms] if word.endswith("?") else forms)
        return [" ".join(" ".join(words).split()) for words in itertools.product(*slots)]

    @property
    def slots(self) -> list[Slot]:
        """The wording for `GapMatcher`."""
        return [self._slot(word) for word in self.text.split()]

    def _slot(self, word: str) -> Slot:
        if word in MOST:
            stops = cues.GAP_STOPS
            if self.absent:
                stops = stops | cues.NORMAL_STOPS
            if word == "~":
                stops = stops | cues.LIST_STOPS
            return Slot(stops, most=MOST_NORMAL if self.absent else MOST[word])
        return Slot(frozenset(_forms(word.removesuffix("?"))), optional=word.endswith("?"))


def _forms(word: str) -> list[str]:
    forms = []
    for form in word.split("/"):
        bare = form.removesuffix("(s)")
        forms += [bare, f"{bare}s"] if form.endswith("(s)") else [bare]
    return list(dict.fromkeys(forms))


@dataclass(frozen=True)
class Finding:
    """One finding of the lexicon.

    Args:
        name: as aligned sentences say it.
        patterns: its wordings.
        kind_of: the more general finding, or None.
        benchmark_names: how benchmarks' prompts say it.
    """

    name: str
    patterns: tuple[Pattern, ...]
    kind_of: str | None = None
    benchmark_names: tuple[str, ...] = ()

    @cached_property
    def synonyms(self) -> tuple[str, ...]:
        """Other names, in the order of the lexicon, singular."""
        plain = (p.phrases[0] for p in self.patterns if not p.absent and p.phrases)
        return tuple(dict.fromkeys(name for name in plain if name != self.name))


class Lexicon:
    """Findings by name and by any of their names.

    Args:
        findings: with unique names.

    Attributes:
        findings: {name: `Finding`}, in order.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: dict[str, Finding] = {}
        self._named: dict[str, str] = {}
        for finding in findings:
            if finding.name in self.findings:
                raise UserError(f"lexicon: the finding {finding.name!r} stands in it twice.")
            self.findings[finding.name] = finding
        for finding in self.findings.values():
            if finding.kind_of is not None and finding.kind_of not in self.findings:
                raise UserError(f"lexicon: {finding.name!r} is a kind of {finding.kind_of!r}, which has no line.")
            phrases = [phrase for p in finding.patterns if not p.absent for phrase in p.phrases]
            for phrase in (*phrases, *finding.benchmark_names):
                self._named.setdefault(phrase.lower(), finding.name)
        # a finding's own name wins over another's synonym
        self._named |= {name.lower(): name for name in self.findings}

    def named(self, text: str) -> Finding | None:
        """The finding that goes by this name, whatever its case and spaces; None if there is none."""
        name = self._named.get(" ".join(re.split(r"[\s_\-/]+", text.lower())).strip(" ."))
        return None if name is None else self.findings[name]

    def is_a(self, name: str, general: str) -> bool:
        """Whether a finding is the general one or a kind of it."""
        current: str | None = name
        while current is not None and current != general:
            current = self.findings[current].kind_of
        return current == general


def read_lexicon(path: str | os.PathLike[str] = PATH) -> Lexicon:
    """Read a lexicon file.

    Raises:
        UserError: it cannot be read, or a line is wrong; the sentence names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The lexicon {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    findings = [_finding(line, f"The lexicon {path}, line {n}") for n, line in enumerate(lines, 1) if _content(line)]
    if not findings:
        raise UserError(f"The lexicon {path} names no finding.")
    return Lexicon(findings)


@lru_cache(maxsize=1)
def default_lexicon() -> Lexicon:
    """The lexicon of the package, read once."""
    return read_lexicon()


def _content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _finding(line: str, where: str) -> Finding:
    match = re.fullmatch(r"\s*(?P<name>[^:\[\]]+?)\s*(?:\[(?P<general>[^\]]+)\])?\s*:(?P<rest>.*)", line)
    if match is None:
        raise UserError(f"{where}: expected 'finding: pattern | pattern', got {line.strip()!r}.")
    patterns, names = [], []
    for part in (p.strip() for p in match["rest"].split("|")):
        if part.startswith("@"):
            names.append(part[1:].strip())
            continue
        text = part.removeprefix("!").strip()
        words = text.split()
        if not words or {words[0], words[-1]} & set(MOST) or words[0].endswith("?"):
            raise UserError(f"{where}: the pattern {part!r} must begin and end with a word.")
        patterns.append(Pattern(text, absent=part.startswith("!")))
    if not any(not p.absent for p in patterns):
        raise UserError(f"{where}: {match['name']!r} has no pattern that says it is present.")
    # a finding goes by its own name as well
    return Finding(match["name"], (Pattern(match["name"]), *patterns), match["general"], tuple(names))
