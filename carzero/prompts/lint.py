"""What is likely wrong with prompts, said before they are used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from carzero.models.text import clean_text
from carzero.prompts.lexicon import Finding, Lexicon, default_lexicon
from carzero.prompts.sets import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: word pieces of a text, [CLS] and [SEP] included
MOST_PIECES = 97
#: a word of so many pieces is one that the tokenizer does not know
UNKNOWN_PIECES = 5
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        a an and any appears are as at be by can consistent each evidence findings for from has have images image in is
        it its left lung lungs no normal of on or present radiograph right seen shows side sides sign signs size
        suggesting suggestive the there this to visible was which with within without chest film view x ray bilateral
        both possible small large mild moderate severe minimal tiny abnormal patient
        """,
    )
)


def lint(
    prompts: PromptSet,
    *,
    lexicon: Lexicon | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_pieces: int = MOST_PIECES,
) -> list[str]:
    """Sentences about prompts that will likely not do what is meant.

    They tell of: prompts of one word; words that neither the lexicon nor everyday language has, or that the tokenizer
    spells piece by piece; prompts that are cut; one prompt in two classes; and prompts whose finding is another
    class's, by the lexicon.

    Args:
        prompts: the set.
        lexicon: findings and their names; the package's by default.
        tokenizer: of the model; without it pieces are not counted.
        max_pieces: that the model reads, [CLS] and [SEP] included.

    Returns:
        warnings, in the order of the classes; none where nothing stands out.
    """
    lexicon = lexicon or default_lexicon()
    known = _COMMON | _words_of(lexicon)
    found, owners = [], _owners(prompts, lexicon)
    first: dict[str, str] = {}
    for name, texts in zip(prompts.classes, prompts.prompts):
        for text in texts:
            said = f"class {name!r}, prompt {text!r}"
            words = clean_text(text).split()
            if len(words) == 1:
                found.append(f"{said}: one word; write a sentence, such as 'There is {words[0]}'.")
            strange = [w for w in words if w not in known and not w.replace(".", "").isdigit()]
            if tokenizer is not None:
                strange = [w for w in words if _is_spelt(w, tokenizer)]
                pieces = len(tokenizer(" ".join(words))["input_ids"])
                if pieces > max_pieces:
                    found.append(f"{said}: {pieces} word pieces, of which the model reads {max_pieces}.")
            if strange:
                found.append(f"{said}: unknown word{'s' * (len(strange) > 1)} {', '.join(dict.fromkeys(strange))}.")
            key = " ".join(words)
            if first.setdefault(key, name) != name:
                found.append(f"{said}: the class {first[key]!r} has the same prompt.")
            finding = _finding_of(text, lexicon)
            if finding is not None:
                owner = owners.get(finding.name, name)
                if owner != name and first[key] == name:
                    found.append(f"{said}: says {finding.name!r}, which is what the class {owner!r} stands for.")
    return found


def _owners(prompts: PromptSet, lexicon: Lexicon) -> dict[str, str]:
    """The class that stands for each finding: the one that bears its name, else the first whose prompt says it."""
    owners: dict[str, str] = {}
    named = [(name, lexicon.named(name)) for name in prompts.classes]
    # the canonical name before any other of the finding
    for name, finding in sorted(named, key=lambda pair: pair[1] is None or pair[1].name != pair[0].lower()):
        if finding is not None:
            owners.setdefault(finding.name, name)
    for name, texts in zip(prompts.classes, prompts.prompts):
        for text in texts:
            finding = _finding_of(text, lexicon)
            if finding is not None:
                owners.setdefault(finding.name, name)
    return owners


def _finding_of(text: str, lexicon: Lexicon) -> Finding | None:
    """The finding that a prompt says, where it says one by name."""
    bare = re.sub(r"^\s*there (?:is|are)\s+(?:no\s+|an?\s+)?", "", text.strip().rstrip("."), flags=re.IGNORECASE)
    return lexicon.named(bare)


def _words_of(lexicon: Lexicon) -> frozenset[str]:
    phrases: list[str] = []
    for finding in lexicon.findings.values():
        phrases += [finding.name, *finding.benchmark_names]
        phrases += [form for p in finding.patterns for form in re.split(r"[\s/~?]+", p.text.replace("(s)", "")) if form]
        phrases += [phrase for p in finding.patterns for phrase in p.phrases]
    return frozenset(word for phrase in phrases for word in clean_text(phrase).split())


def _is_spelt(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    pieces: Sequence[str] = tokenizer.tokenize(word)
    return tokenizer.unk_token in pieces or len(pieces) >= UNKNOWN_PIECES
