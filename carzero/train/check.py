"""A manifest looked over before a run starts: what would stop the run, and what would spoil what it is worth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from carzero.data.dataset import absolute, read_manifest
from carzero.data.decode import ImageError, read_grey
from carzero.errors import UserError
from carzero.models.text import clean_text
from carzero.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Args:
        what: in words.
        count: rows, patients or studies that it concerns.
        grave: whether it stops a run or makes its test figures wrong; the others are worth knowing.
        examples: some of them.
    """

    what: str
    count: int
    grave: bool
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a check came to.

    Args:
        findings: in the order of looking; a count of 0 is a check that passed.
        facts: name -> value, of a manifest that is as it should be too.
        rows: all rows that a finding concerns: row (the header is 1), image, problem.
    """

    findings: list[Finding]
    facts: dict[str, str]
    rows: pd.DataFrame

    @property
    def sound(self) -> bool:
        """Whether nothing grave was found."""
        return not any(f.grave and f.count for f in self.findings)


def check_manifest(
    manifest: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    max_tokens: int = 97,
    workers: int = 0,
    read_images: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look for missing and unreadable images, empty texts, patients in two splits, duplicates and texts that are cut.

    Args:
        manifest: as `carzero.data.dataset.ManifestDataset` takes it, also with faults that it refuses.
        tokenizer: folder or hub id, to count the word pieces of texts; words are counted when None.
        max_tokens: pieces that the text encoder takes.
        workers: processes that decode images.
        read_images: decode every image; else only look whether it is there.
        progress: called with images done and in all.

    Raises:
        UserError: the manifest is no table, lacks a column, has no rows, or the tokenizer cannot be opened.
    """
    path = Path(manifest)
    table = read_manifest(path)
    if table.empty:
        raise UserError(f"The manifest {path} has a header but no rows.")
    table = table.reset_index(drop=True)
    problems: dict[int, list[str]] = {}
    findings: list[Finding] = []

    def found(
        what: str, rows: Iterable[int], *, grave: bool, examples: Iterable[str] | None = None, count: int | None = None
    ):
        rows = list(rows)
        for row in rows:
            problems.setdefault(row, []).append(what)
        shown = list(examples) if examples is not None else [f"row {row + 2}: {table['image'][row]}" for row in rows]
        findings.append(Finding(what, len(rows) if count is None else count, grave, tuple(shown[:3])))

    blank = table.index[table["image"].str.strip() == ""]
    found("rows without an image", blank, grave=True)
    images = absolute(table["image"], path)
    there = [row not in set(blank) and os.path.isfile(image) for row, image in enumerate(images)]
    found("images that do not exist", [r for r, ok in enumerate(there) if not ok and r not in set(blank)], grave=True)
    present = [row for row, ok in enumerate(there) if ok]
    read = _read_all([images[row] for row in present], workers, progress) if read_images else []
    reasons = {row: result.reason for row, result in zip(present, read) if result.reason}
    found(
        "images that cannot be read", reasons, grave=True,
        examples=[f"row {row + 2}: {table['image'][row]} {why}" for row, why in reasons.items()],
    )  # fmt: skip
    found("empty texts", table.index[table["text"].str.strip() == ""], grave=True)
    for name, where in (("patient", "patients"), ("study", "studies")):
        if name in table and "split" in table:
            named = table[table[name] != ""]
            splits = named.groupby(name)["split"].agg(lambda s: sorted(set(s)))
            torn = splits[splits.map(len) > 1]
            found(
                f"{where} in more than one split", named.index[named[name].isin(torn.index)], grave=True,
                count=len(torn), examples=[f"{key}: {' and '.join(map(str, parts))}" for key, parts in torn.items()],
            )  # fmt: skip
    cleaned = table["text"].map(clean_text)
    found(
        "texts without a Latin letter or digit",
        table.index[(cleaned == "") & (table["text"].str.strip() != "")],
        grave=True,
    )
    twice = table.duplicated(["image", "text"], keep=False)
    found("rows that repeat an image with the same text", table.index[twice], grave=False)
    listed = pd.Series(images).duplicated(keep=False) & ~twice
    found("rows that repeat an image with another text", table.index[listed], grave=False)
    names: dict[str, set[str]] = {}
    for row, result in zip(present, read):
        if result.digest:
            names.setdefault(result.digest, set()).add(images[row])
    copies = {image: files for files in names.values() if len(files) > 1 for image in files}
    found("files with the same pixels under several names", [r for r in present if images[r] in copies], grave=False)
    if "split" in table:
        splits_of = pd.Series(table["split"].to_numpy()).groupby(images).agg(set)
        leaked = {image for image, files in copies.items() if len(set().union(*(splits_of[f] for f in files))) > 1}
        found("the same pixels in more than one split", [r for r in present if images[r] in leaked], grave=True)
    lengths, unit, limit = _lengths(cleaned.tolist(), tokenizer, max_tokens)
    found(f"texts longer than {limit} {unit}, which are cut", np.flatnonzero(lengths > limit).tolist(), grave=False)
    rows = pd.DataFrame(
        [(row + 2, table["image"][row], "; ".join(what)) for row, what in sorted(problems.items())],
        columns=["row", "image", "problem"],
    )
    return Report(findings, _facts(table, lengths, unit), rows)


@dataclass(frozen=True)
class _Read:
    reason: str
    digest: str


def _read_all(images: list[str], workers: int, progress: Callable[[int, int], None] | None) -> list[_Read]:
    read: list[_Read] = []
    if workers:
        # a fresh process each: OpenCV's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for result in pool.map(_read_one, images, chunksize=16):
                read.append(result)
                if progress:
                    progress(len(read), len(images))
        return read
    for image in images:
        read.append(_read_one(image))
        if progress:
            progress(len(read), len(images))
    return read


def _read_one(image: str) -> _Read:
    try:
        grey = read_grey(image, None)
    except ImageError as error:
        return _Read(error.reason, "")
    return _Read("", hashlib.sha256(f"{grey.shape}".encode() + grey.tobytes()).hexdigest())


def _lengths(texts: list[str], tokenizer: str | None, max_tokens: int) -> tuple[np.ndarray, str, int]:
    if tokenizer is None:
        # [CLS] and [SEP] take two of them
        return np.array([len(text.split()) for text in texts]), "words", max_tokens - 2
    pieces = load_tokenizer(tokenizer)(texts, truncation=False, verbose=False)["input_ids"]
    return np.array([len(p) for p in pieces]), "word pieces", max_tokens


def _facts(table: pd.DataFrame, lengths: np.ndarray, unit: str) -> dict[str, str]:
    facts = {
        "rows": f"{len(table):,}",
        "images": f"{table['image'].nunique():,}",
        "texts": f"{table['text'].nunique():,}",
    }
    for name, plural in (("patient", "patients"), ("study", "studies")):
        if name in table:
            facts[plural] = f"{table[name][table[name] != ''].nunique():,}"
    for name in ("split", "view"):
        if name in table:
            facts[f"rows by {name}"] = ", ".join(
                f"{key or '(blank)'} {n:,}" for key, n in table[name].value_counts().items()
            )
    if "texts" in table:
        facts["texts a row"] = f"{table['texts'].map(len).mean():.1f} on average"
    half, most = np.percentile(lengths, [50, 99])
    facts[f"{unit} a text"] = f"median {half:.0f}, 99th percentile {most:.0f}, longest {lengths.max()}"
    return facts
