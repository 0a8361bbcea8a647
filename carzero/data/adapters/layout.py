"""What all adapters share: reading the tables of a data set, telling frontal views, report sections, label columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from carzero.errors import UserError

#: Names of frontal projections in the tables of the sets, upper case.
FRONTAL = {"PA", "AP", "FRONTAL", "AP_HORIZONTAL", "AP AXIAL", "PA LLD", "PA RLD", "AP LLD", "AP RLD"}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&,()-]{3,60}):", re.MULTILINE)


def find(root: Path, patterns: Iterable[str]) -> Path | None:
    """The first file under `root` that one of the patterns names, in their order."""
    return next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)


def need(root: Path, patterns: Iterable[str], what: str) -> Path:
    """`find`, or a sentence that names what was looked for.

    Raises:
        UserError: there is no such file.
    """
    patterns = list(patterns)
    found = find(root, patterns)
    if found is None:
        raise UserError(f"data manifest: {root} holds no {what}: looked for {' and '.join(patterns)}.")
    return found


def read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV table (plain or .gz) as str, blanks where a cell is empty.

    Raises:
        UserError: it cannot be read or lacks one of the columns.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"data manifest: {path} cannot be read: {' '.join(str(error).split())}.") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(
            f"data manifest: {path} lacks the column {missing[0]!r}; it has {', '.join(map(str, table.columns))}."
        )
    return table


def sections(report: str) -> dict[str, str]:
    """The sections of a report in capitals with a colon (``FINDINGS:``), names in lower case, white space collapsed."""
    heads = list(_HEADING.finditer(report))
    found: dict[str, str] = {}
    for head, after in zip(heads, [*heads[1:], None]):
        text = " ".join(report[head.end() : after.start() if after else None].split())
        if text:
            found.setdefault(head[1].strip().lower(), text)
    return found


def findings_and_impression(report: str) -> str:
    """What a report says of the image: findings, then impression; where it has neither, its last paragraph.

    Source: the published code's choice of text, ``CARZero/datasets/pretraining_dataset.py``.
    """
    found = sections(report)
    parts = [found[name] for name in ("findings", "impression") if name in found]
    both = [found[name] for name in found if "findings" in name and "impression" in name]
    if parts or both:
        return " ".join(parts or both)
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", report) if p.strip()]
    return paragraphs[-1] if paragraphs else ""


def one_hot(lists: Iterable[Iterable[str]], classes: Iterable[str]) -> pd.DataFrame:
    """A column of "0" and "1" for each class, a row for each list of labels."""
    sets = [set(names) for names in lists]
    return pd.DataFrame({name: ["1" if name in s else "0" for s in sets] for name in classes})
