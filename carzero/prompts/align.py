"""Reports in, standard sentences out: reading the table, running an engine, writing what `carzero train` reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carzero.errors import UserError
from carzero.prompts.rules import RulesEngine, unwrapped
from carzero.prompts.statement import AlignedReport

if TYPE_CHECKING:
    import pandas as pd

#: columns that the output adds to those of the input
ADDED = ("text", "aligned", "texts", "statements", "unaligned", "status")
#: what a report gives to training, as `--train-on` names it
TRAIN_ON = ("both", "aligned", "raw")
FORMATS = (".parquet", ".csv")
_CHUNK = 200
# a full stop and the like before white space, or a line break: "1.5 cm" stays whole
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_ENUMERATION = re.compile(r"^\s*\d+\.\s*")


def report_text(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The report of a row: its columns that hold text, a paragraph each."""
    parts = (str(row[name]).strip() for name in columns)
    return "\n\n".join(part for part in parts if part)


def read_reports(path: str | os.PathLike[str], columns: Sequence[str]) -> pd.DataFrame:
    """The table of reports, all columns as text.

    Args:
        path: ``.csv`` (UTF-8, with a header) or ``.parquet``.
        columns: those that make up a report.

    Raises:
        UserError: it cannot be read, or lacks a column, or has one that the output adds.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"The reports {path} must be a .csv or .parquet file.")
    try:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        else:
            table = pd.read_parquet(path).fillna("").astype(str)
    except OSError as error:
        raise UserError(f"The reports {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The reports {path} are not UTF-8 text (byte {error.start}): save them as UTF-8.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise UserError(f"The reports {path} are not a valid table: {' '.join(str(error).split())}.") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(
            f"The reports {path} lack the column{'s' * (len(missing) > 1)} {' and '.join(missing)}; they have "
            f"{', '.join(map(str, table.columns))}. Name the text with --text."
        )
    taken = [name for name in ADDED if name in table.columns and name not in columns]
    if taken:
        raise UserError(f"The reports {path} have a column {taken[0]!r}, which the output adds: rename it.")
    return table


def raw_sentences(report: str) -> list[str]:
    """The sentences of a report that hold a word, without their numbers; wrapped lines are joined."""
    parts = (_ENUMERATION.sub("", part).strip() for part in _SENTENCE_END.split(unwrapped(report)))
    return [" ".join(part.split()) for part in parts if any(c.isalpha() for c in part)]


def training_texts(report: str, aligned: AlignedReport, train_on: str) -> list[str]:
    """The texts that stand for a report in training, each once.

    Args:
        train_on: ``both`` (as the paper: raw and aligned sentences), ``aligned``, or ``raw``. A report without any
            aligned sentence gives its raw ones, whatever is asked for.
    """
    raw = raw_sentences(report)
    chosen = {"raw": raw, "both": [*raw, *aligned.sentences], "aligned": aligned.sentences or raw}[train_on]
    return list(dict.fromkeys(chosen)) or [report]


def align_rules(texts: Sequence[str], *, workers: int = 1) -> Iterator[AlignedReport]:
    """The reports of the rules engine, in order.

    Args:
        texts: reports.
        workers: processes that share them.
    """
    if workers <= 1:
        yield from RulesEngine().pipe(texts)
        return
    with ProcessPoolExecutor(workers, initializer=_start) as pool:
        for part in pool.map(_align_chunk, _chunks(texts)):
            yield from part


_engine: RulesEngine


def _start() -> None:
    global _engine
    _engine = RulesEngine()


def _align_chunk(texts: list[str]) -> list[AlignedReport]:
    return list(_engine.pipe(texts))


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def aligned_table(
    reports: pd.DataFrame, texts: Sequence[str], aligned: Iterable[AlignedReport], *, train_on: str = "both"
) -> pd.DataFrame:
    """The input's rows with what was made of them.

    Returns:
        the columns of `reports` and: text (the report), aligned (its standard sentences in a row), texts (the list that
        training draws from, see `training_texts`), statements (a list of mappings, one a finding), unaligned (sentences
        and answers from which nothing was made), and status (``aligned``, ``review``: a person should look, ``set
        aside``: nothing could be aligned).
    """
    done = list(aligned)
    if not len(reports) == len(texts) == len(done):
        raise ValueError(f"aligned_table: {len(reports)} reports, {len(texts)} texts and {len(done)} results differ.")
    return reports.assign(
        text=list(texts),
        aligned=[report.text for report in done],
        texts=[training_texts(text, report, train_on) for text, report in zip(texts, done)],
        statements=[[s.as_dict() for s in report.statements] for report in done],
        unaligned=[list(report.unaligned) for report in done],
        status=[_status(report) for report in done],
    )


def _status(report: AlignedReport) -> str:
    if not report.statements:
        return "set aside"
    return "review" if any(s.review for s in report.statements) else "aligned"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the table in one step, so that a reader never sees half of it; in CSV the lists are JSON."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix.lower() == ".csv":
            lists = {
                name: table[name].map(lambda v: json.dumps(v, ensure_ascii=False))
                for name in ("texts", "statements", "unaligned")
            }
            table.assign(**lists).to_csv(partial, index=False)
        else:
            _write_parquet(table, partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"The table {path} cannot be written: {error.strerror or error}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'carzero[prompts]', or name a .csv file.") from None
    flags = {"negated", "uncertain"}
    names = ["finding", "negated", "uncertain", "severity", "side", "location", "change", "start", "end", "review"]
    kinds = {
        name: pa.bool_() if name in flags else pa.int32() if name in ("start", "end") else pa.string() for name in names
    }
    statements = pa.list_(pa.struct([*((n, kinds[n]) for n in names), ("aligned", pa.string())]))
    arrays = {str(name): table[name] for name in table.columns}
    # the types are given, so that a table without any statement reads like one with many
    typed = {"statements": statements, "unaligned": pa.list_(pa.string()), "texts": pa.list_(pa.string())}
    columns = {name: pa.array(list(values), type=typed.get(name, pa.string())) for name, values in arrays.items()}
    pq.write_table(pa.table(columns), path)


def counts_of(table: pd.DataFrame) -> dict[str, Any]:
    """What went into the table and what came of it, in numbers."""
    statements = [s for row in table["statements"] for s in row]
    return {
        "reports": len(table),
        "status": dict(Counter(table["status"])),
        "statements": len(statements),
        "negated": sum(s["negated"] for s in statements),
        "uncertain": sum(s["uncertain"] for s in statements),
        "review": sum(bool(s["review"]) for s in statements),
        "unaligned": sum(map(len, table["unaligned"])),
        "findings": dict(Counter(s["finding"] for s in statements).most_common()),
    }


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()
