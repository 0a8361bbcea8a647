"""The offline engine: statements of a report by one lexicon, negspacy's cues and rules about their reach."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from carzero.errors import UserError
from carzero.prompts import cues
from carzero.prompts.gaps import GapMatcher
from carzero.prompts.lexicon import Finding, Lexicon, Pattern, default_lexicon
from carzero.prompts.mention import ABSENT, GAPPED, Found, Mention
from carzero.prompts.statement import AlignedReport

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.matcher import PhraseMatcher
    from spacy.tokens import Doc

#: changes of these rules that change their output; part of every cache key and manifest
VERSION = "1"

# characters that split words are spaces to the engine; the length of the text stays, so that spans fit the original
_SPLITTERS = str.maketrans({"-": " ", "/": " ", "–": " ", "—": " ", "_": " ", "\t": " ", "\r": " "})
_ENDS = [".", "!", ";", "\n", "\n\n", "\n\n\n"]
# a line break inside a sentence: the line before it is long or the next one begins small, and none ends or opens a list
_WRAP = re.compile(
    r"(?<=[^\s.!?;:])[ \t]*\n(?=[ \t]*[a-z(])|(?<=[^\n]{60}[^\s.!?;:\n])\n(?=[ \t]*[A-Za-z(](?![^\n:]{0,25}:))"
)


class RulesEngine:
    """Turns reports into statements without any model or network.

    Equivalent to: every wording of the lexicon that the text holds is a statement; it is negated where negspacy finds a
    cue before or after it in its sentence and no verb, "but" or new statement stands between; a wording of normality
    ("heart size is normal") denies its finding.

    Args:
        lexicon: findings and wordings; the package's own by default.

    Raises:
        UserError: spaCy or negspacy is missing.
    """

    def __init__(self, lexicon: Lexicon | None = None) -> None:
        self.lexicon = lexicon or default_lexicon()
        self._nlp = _pipeline(self.lexicon)
        self._negex: Any = self._nlp.get_pipe("negex")
        self._cues = _cue_matcher(self._nlp)
        self._gaps = GapMatcher(
            (_label(finding, pattern), pattern.slots)
            for finding in self.lexicon.findings.values()
            for pattern in finding.patterns
            if pattern.gapped
        )

    def __call__(self, text: str) -> AlignedReport:
        """The statements of one report, and its sentences that hold none."""
        return next(self.pipe([text]))

    def pipe(self, texts: Iterable[str]) -> Iterator[AlignedReport]:
        """`__call__` for many reports, in order."""
        for doc in self._nlp.pipe(unwrapped(text).translate(_SPLITTERS) for text in texts):
            yield self._report(doc)

    def _report(self, doc: Doc) -> AlignedReport:
        words = [token.lower_ for token in doc]
        spans = [Found(s.label_, s.start, s.end) for s in doc.spans["findings"]]
        spans = _prune(spans + [Found(*match) for match in self._gaps(words)])
        preceding, following, terminating = self._negex.process_negations(doc)
        marks = [("before", a, b) for _, a, b in preceding] + [("after", a, b) for _, a, b in following]
        marks += [("end", a, b) for _, a, b in terminating]
        marks += [(doc.vocab.strings[match], a, b) for match, a, b in self._cues(doc)]
        statements, unaligned = [], []
        for sentence in doc.sents:
            inside = [s for s in spans if s.start >= sentence.start and s.end <= sentence.end]
            said = []
            if inside:
                here: dict[str, list[tuple[int, int]]] = {}
                for kind, a, b in marks:
                    if a >= sentence.start and b <= sentence.end:
                        here.setdefault(kind, []).append((a, b))
                mentions = (Mention(doc, words, sentence, span, inside, here) for span in inside)
                said = [statement for m in mentions if (statement := m.statement()) is not None]
            statements += said
            text = " ".join(sentence.text.split())
            if not said and any(c.isalpha() for c in text):
                unaligned.append(text)
        return AlignedReport(tuple(dict.fromkeys(statements)), tuple(unaligned))


def unwrapped(text: str) -> str:
    """The text with spaces for the line breaks that only wrap it; its length stays."""
    return _WRAP.sub(lambda match: " " * len(match[0]), text)


def _label(finding: Finding, pattern: Pattern) -> str:
    return f"{finding.name}|{' '.join([ABSENT] * pattern.absent + [GAPPED] * pattern.gapped)}"


def _prune(spans: list[Found]) -> list[Found]:
    """One wording a mention: the longest without a gap, else the shortest, of those that say the same or more."""
    spans = sorted(spans, key=lambda s: (not s.absent, s.gapped, (s.end - s.start) * (1 if s.gapped else -1), s.start))
    kept: list[Found] = []
    for span in spans:
        for other in kept:
            if other.name == span.name and span.start < other.end and other.start < span.end:
                break
            inside = span.start >= other.start and span.end <= other.end and span[1:] != other[1:]
            if inside and not span.gapped and not other.absent:
                break
        else:
            kept.append(span)
    return sorted((s for s in kept if not _covered(s, kept)), key=lambda s: (s.start, s.end))


def _covered(span: Found, kept: list[Found]) -> bool:
    """Whether the words are the first or last of a wording with a gap: "calcified" of "calcified left granuloma"."""
    return not span.gapped and any(
        other.gapped
        and not other.absent
        and other.start <= span.start
        and span.end <= other.end
        and span[1:] != other[1:]
        and (span.start == other.start or span.end == other.end)
        for other in kept
    )


@lru_cache(maxsize=4)
def _pipeline(lexicon: Lexicon) -> Language:
    try:
        import negspacy.negation  # noqa: F401  (registers the component)
        import spacy
    except ImportError as error:
        raise UserError(
            f"The rules engine needs spaCy and negspacy ({error}): pip install 'carzero[prompts]'."
        ) from None
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": _ENDS})
    ruler: Any = nlp.add_pipe(
        "span_ruler", config={"spans_key": "findings", "annotate_ents": False, "phrase_matcher_attr": "LOWER"}
    )
    ruler.add_patterns(
        [
            {"label": _label(finding, pattern), "pattern": phrase}
            for finding in lexicon.findings.values()
            for pattern in finding.patterns
            for phrase in pattern.phrases
        ]
    )
    nlp.add_pipe("negex", config={"neg_termset": cues.NEGATION, "span_keys": ["findings"]})
    return nlp


def _cue_matcher(nlp: Language) -> PhraseMatcher:
    from spacy.matcher import PhraseMatcher

    matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
    lists = {
        "doubt before": cues.UNCERTAIN_BEFORE,
        "doubt after": cues.UNCERTAIN_AFTER,
        "elsewhere": cues.NOT_OF_THE_IMAGE,
    }
    tables = {"change": cues.CHANGES, "severity": cues.SEVERITY, "side": cues.SIDE, "place": cues.PLACE}
    for kind, table in tables.items():
        lists |= {f"{kind}:{value}": words for value, words in table.items()}
    for key, phrases in lists.items():
        matcher.add(key, [nlp.make_doc(phrase) for phrase in phrases])
    return matcher
