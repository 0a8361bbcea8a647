"""Which prompts stand for which class: from a mapping, a list of findings, or a file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carzero.errors import UserError

#: The published wording; ``{finding}`` is replaced by the class.
TEMPLATE = "There is {finding}"
#: The table of scores has a column of this name.
_RESERVED = "image"


@dataclass(frozen=True)
class PromptSet:
    """Classes and their prompts, in order; several prompts of a class are pooled after scoring.

    Args:
        classes: unique names, columns of the table of scores.
        prompts: for each class, its prompts, at least one.
    """

    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise UserError("No class was given: at least one class with one prompt is needed.")
        if len(self.classes) != len(self.prompts):
            raise UserError(
                f"PromptSet: classes and prompts must be as many, got {len(self.classes)} and {len(self.prompts)}."
            )
        for name, texts in zip(self.classes, self.prompts):
            if not name.strip():
                raise UserError("A class has an empty name.")
            if name == _RESERVED:
                raise UserError(
                    f"A class cannot be called {_RESERVED!r}: the table of scores has a column of that name."
                )
            if not texts:
                raise UserError(f"The class {name!r} has no prompt.")
            if not all(any(character.isalnum() for character in text) for text in texts):
                raise UserError(f"The class {name!r} has a prompt without any word.")
        repeated = _repeated(self.classes)
        if repeated:
            raise UserError(f"The class {repeated[0]!r} occurs more than once: give all its prompts in one place.")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def texts(self) -> list[str]:
        """All prompts in a row, class after class."""
        return [text for texts in self.prompts for text in texts]

    @property
    def sizes(self) -> list[int]:
        """Number of prompts of each class."""
        return [len(texts) for texts in self.prompts]

    @classmethod
    def of(cls, prompts: PromptSet | Mapping[str, str | Sequence[str]] | Sequence[str]) -> PromptSet:
        """A set from a mapping ``{class: prompt or [prompts]}``, or from prompts that are their own class names."""
        if isinstance(prompts, PromptSet):
            return prompts
        if isinstance(prompts, str):
            raise UserError(f"Prompts must be a list or a mapping of them, got the single text {prompts!r}.")
        if not isinstance(prompts, Mapping):
            prompts = _own_names(prompts)
        return cls(
            tuple(str(name).strip() for name in prompts),
            tuple((texts,) if isinstance(texts, str) else tuple(texts) for texts in prompts.values()),
        )

    @classmethod
    def from_findings(
        cls, findings: Mapping[str, str] | Iterable[str], templates: str | Sequence[str] = TEMPLATE
    ) -> PromptSet:
        """One class per finding, a prompt of it from each template.

        Args:
            findings: names, or ``{class: finding as the prompt says it}``.
            templates: one wording or several, each with ``{finding}``.
        """
        wordings = (templates,) if isinstance(templates, str) else tuple(templates)
        for wording in wordings:
            if "{finding}" not in wording:
                raise UserError(f"The template must contain {{finding}}, got {wording!r}.")
        if not isinstance(findings, Mapping):
            names = [finding.strip() for finding in findings]
            findings = dict(zip(names, names))
            if len(findings) != len(names):
                raise UserError(f"The class {_repeated(names)[0]!r} occurs more than once.")
        filled = (tuple(w.replace("{finding}", said.strip()) for w in wordings) for said in findings.values())
        return cls(tuple(findings), tuple(filled))

    def negated(self) -> PromptSet:
        """The same classes denied: "There is X" and "There are X" become "There is no X" and "There are no X".

        Raises:
            UserError: a prompt does not begin so, and how to deny it is not known.
        """
        return PromptSet(self.classes, tuple(tuple(map(_denied, texts)) for texts in self.prompts))


def load_prompts(path: str | os.PathLike[str]) -> PromptSet:
    """Read a prompt file.

    - ``.json``: ``{"class": "prompt"}`` or ``{"class": ["prompt", ...]}``;
    - ``.csv``: a header with the columns ``class`` and ``prompt``, one prompt a row, a class may have several rows;
    - ``.txt``: one prompt a line, which is also the name of its class.

    Raises:
        UserError: it cannot be read; the sentence names the file and, where there is one, the line.
    """
    path = Path(path)
    readers = {".json": _from_json, ".csv": _from_csv, ".txt": _from_lines}
    if path.suffix.lower() not in readers:
        raise UserError(f"The prompt file {path} must end in {', '.join(readers)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The prompt file {path} does not exist.") from None
    except OSError as error:
        raise UserError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The prompt file {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    if not text.strip():
        raise UserError(f"The prompt file {path} is empty.")
    try:
        return readers[path.suffix.lower()](text)
    except UserError as error:
        raise UserError(f"The prompt file {path} cannot be used: {error}") from None


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _denied(prompt: str) -> str:
    opening = re.match(r"there (?:is|are)\b(?! no\b)(?: an?\b)?", prompt, re.IGNORECASE)
    if opening is None:
        raise UserError(
            f"The prompt {prompt!r} has no known negative: it must begin with 'There is' or 'There are' and not deny."
        )
    return f"{' '.join(opening[0].split()[:2])} no{prompt[opening.end() :]}"


def _own_names(prompts: Sequence[str]) -> dict[str, str]:
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UserError(f"A prompt must be a text, got {prompt!r}.")
    repeated = _repeated(prompts)
    if repeated:
        raise UserError(f"The prompt {repeated[0]!r} occurs more than once.")
    return {prompt: prompt for prompt in prompts}


def _from_json(text: str) -> PromptSet:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise UserError(f"line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise UserError('it must hold an object: {"class": "prompt"} or {"class": ["prompt", ...]}.')
    return PromptSet(tuple(name.strip() for name, _ in pairs), tuple(_texts(name, value) for name, value in pairs))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"the class {name!r} must have a text or a list of texts, got {json.dumps(value)}.")
    return tuple(texts)


def _from_csv(text: str) -> PromptSet:
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    prompts: dict[str, list[str]] = {}
    try:
        header = [name.strip().lower() for name in next(rows)]
        if "class" not in header or "prompt" not in header:
            raise UserError(f"line 1: the header needs the columns class and prompt, got {', '.join(header)}.")
        at = header.index("class"), header.index("prompt")
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"line {rows.line_num}: {len(row)} cells where the header has {len(header)}; a prompt with a comma "
                    "must stand in double quotes."
                )
            name, prompt = row[at[0]].strip(), row[at[1]].strip()
            if not name or not prompt:
                raise UserError(f"line {rows.line_num}: the {'prompt' if name else 'class'} is empty.")
            prompts.setdefault(name, []).append(prompt)
    except csv.Error as error:
        raise UserError(f"line {rows.line_num}: {error}.") from None
    return PromptSet(tuple(prompts), tuple(map(tuple, prompts.values())))


def _from_lines(text: str) -> PromptSet:
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        prompt = line.strip()
        if not prompt:
            continue
        if prompt in seen:
            raise UserError(f"line {number}: {prompt!r} stands on line {seen[prompt]} already.")
        if not any(character.isalnum() for character in prompt):
            raise UserError(f"line {number}: {prompt!r} holds no word.")
        seen[prompt] = number
    return PromptSet(tuple(seen), tuple((prompt,) for prompt in seen))
