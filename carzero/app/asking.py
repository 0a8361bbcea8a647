"""What a person types, as prompts and their denials."""

from __future__ import annotations

import re
from collections.abc import Iterable

from carzero.errors import UserError
from carzero.prompts import BENCHMARKS, TEMPLATE, PromptSet, prompt_set

#: More lines are refused: each is scored with its denial.
MOST = 400
#: Longer lines are refused: no model reads so many words.
LONGEST = 500
#: What benchmarks are called on the page.
TITLES = {
    "openi": "OpenI",
    "chestxray14": "ChestX-ray14",
    "chestxdet10": "ChestX-Det10",
    "chexpert": "CheXpert",
    "padchest": "PadChest",
}


def read_findings(text: str) -> PromptSet:
    """The findings of a text, one a line: ``read_findings('Edema\\n"the heart is large"')``.

    A line is a finding, asked as "There is <finding>". One that begins with "There is" or "There are" is asked as it
    stands, and so is what stands in double quotes. Equal lines count once.

    Raises:
        UserError: there is none, a line holds no word or is too long, or there are more than `MOST`.
    """
    lines = list(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
    if not lines:
        raise UserError("Type at least one finding, one a line.")
    if len(lines) > MOST:
        raise UserError(f"At most {MOST} findings are scored at a time, got {len(lines)}.")
    for line in lines:
        if len(line) > LONGEST:
            raise UserError(f"A finding has at most {LONGEST} characters, got one of {len(line)}.")
        if not any(character.isalnum() for character in line):
            raise UserError(f"The line {line!r} holds no word.")
    asked = {_prompt(line) if line[0] == '"' else line: _prompt(line) for line in lines}
    repeated = [line for line, prompt in asked.items() if list(asked.values()).count(prompt) > 1]
    if repeated:
        raise UserError(f"Two lines ask the same: {repeated[0]!r} and {repeated[1]!r}.")
    return PromptSet.of(asked)


def write_findings(prompts: Iterable[str]) -> str:
    """Prompts as the lines that `read_findings` makes the same prompts of."""
    opening = TEMPLATE.replace("{finding}", "")
    lines = []
    for prompt in prompts:
        short = prompt.removeprefix(opening)
        lines.append(next(line for line in (short, prompt, f'"{prompt}"') if _prompt(line) == prompt))
    return "\n".join(lines)


def benchmark_findings(name: str) -> str:
    """The prompts of a benchmark of `carzero.prompts`, a line each."""
    return write_findings(prompt_set(name).texts)


def benchmark_choices() -> list[tuple[str, str]]:
    """Title with the number of prompts, and name, of each benchmark."""
    return [(f"{TITLES[name]} ({len(BENCHMARKS[name])} findings)", name) for name in BENCHMARKS]


def denial(prompt: str) -> str | None:
    """ "There is no X" for "There is X"; None where how to deny a prompt is not known."""
    try:
        return PromptSet.of([prompt]).negated().texts[0]
    except UserError:
        return None


def _prompt(line: str) -> str:
    if len(line) > 2 and line[0] == line[-1] == '"':
        return line[1:-1]
    return line if re.match(r"there (?:is|are)\b", line, re.IGNORECASE) else TEMPLATE.replace("{finding}", line)
