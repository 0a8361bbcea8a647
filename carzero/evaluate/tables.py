"""Predictions and labels as CSV files, joined by image name and never by row."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from carzero.errors import UserError

Uncertain = Literal["ignore", "positive", "negative"]
#: Columns of a label file that are never classes.
RESERVED = ("image", "patient", "study", "sex", "age", "view")
#: Names shown of a list that may be long.
SHOWN = 5


@dataclass(frozen=True)
class Predictions:
    """Scores of N images for C classes.

    Args:
        source: file they come from, for messages.
        images: N names or paths.
        classes: C names.
        scores: float64 ``[N, C]``, finite, higher for positives.
    """

    source: str
    images: list[str]
    classes: tuple[str, ...]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Labels:
    """What is known of N images.

    Args:
        source: file it comes from, for messages.
        images: N names or paths.
        table: a column per class with 0, 1, -1 (uncertain) or NaN (no label), and any others.
        patient, study: ``[N]`` names, or None where they are not known.
        classes: the columns of `table` that are classes; None: every column that holds nothing but labels.
    """

    source: str
    images: list[str]
    table: pd.DataFrame
    patient: NDArray | None = None
    study: NDArray | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sample:
    """N images (or studies, or patients) with scores and labels.

    Args:
        images: N names.
        classes: C names.
        labels: float64 ``[N, C]``: 0, 1, or NaN where it is to be ignored.
        scores: float64 ``[N, C]``.
        patient, study: ``[N]``, or None.
        columns: other columns of the label file, N rows.
    """

    images: list[str]
    classes: tuple[str, ...]
    labels: NDArray[np.float64]
    scores: NDArray[np.float64]
    patient: NDArray | None = None
    study: NDArray | None = None
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)

    def take(self, rows: NDArray) -> Sample:
        """Some of the rows."""
        return Sample(
            [self.images[i] for i in np.arange(len(self.images))[rows]], self.classes, self.labels[rows],
            self.scores[rows], None if self.patient is None else self.patient[rows],
            None if self.study is None else self.study[rows], self.columns.iloc[np.arange(len(self.images))[rows]],
        )  # fmt: skip


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read scores: a CSV file whose first column is the image's name or path and whose others are classes.

    Raises:
        UserError: it cannot be read, or a score is missing, no number or not finite; the sentence says where.
    """
    frame, image = _read(path)
    classes = tuple(frame.columns.drop(image))
    if not classes:
        raise UserError(f"The predictions {path} have no class: the columns after {image!r} are classes.")
    images = frame[image].tolist()
    scores = np.empty((len(frame), len(classes)))
    for c, name in enumerate(classes):
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise UserError(
                f"The predictions {path} have {len(bad)} scores of {name!r} that are not finite numbers, the first "
                f"for {images[bad[0]]!r} ({str(frame[name].iloc[bad[0]]) or 'empty'}): leave such images out of both "
                "files, or score them again."
            )
        scores[:, c] = values
    return Predictions(os.fspath(path), images, classes, scores)


def read_labels(path: str | os.PathLike[str], *, patient: str = "patient", study: str = "study") -> Labels:
    """Read labels: a CSV file whose first column is the image's name or path.

    Args:
        path: classes are columns of 0, 1, -1 (uncertain) and empty cells (no label); others may say more.
        patient, study: columns that name them; where there is none, they are unknown.

    Raises:
        UserError: it cannot be read, or names a patient for some images only.
    """
    frame, image = _read(path, text=(patient, study))
    return Labels(
        os.fspath(path), frame[image].tolist(), frame.drop(columns=image), _names(frame, patient, path),
        _names(frame, study, path),
    )  # fmt: skip


def join(
    predictions: Predictions, labels: Labels, *, classes: Sequence[str] = (), uncertain: Uncertain = "ignore",
    by: Sequence[str] = (),
) -> Sample:  # fmt: skip
    """Put predictions to labels by image name, in the order of the labels.

    Names are compared by their last part (``a/b/1.png`` is ``1.png``); where the label file has several images of one
    such name, by as many parts as tell its images apart.

    Args:
        predictions, labels: as they were read.
        classes: the ones to use; empty: all, and then both files must have the same.
        uncertain: what a label of -1 becomes.
        by: columns that are kept although they may look like classes.

    Raises:
        UserError: a name is missing, doubled or unknown in either file, classes differ, or a label is not a label.
    """
    if uncertain not in get_args(Uncertain):
        raise UserError(f"join: uncertain must be one of {', '.join(get_args(Uncertain))}, got {uncertain!r}.")
    order = _matched(predictions, labels)
    chosen = _classes(predictions, labels, classes, by)
    values = np.stack([_label_values(labels, name, uncertain) for name in chosen], axis=1)
    at = [predictions.classes.index(name) for name in chosen]
    missing = [name for name in by if name not in labels.table.columns]
    if missing:
        raise UserError(
            f"The labels {labels.source} have no column {missing[0]!r}. They have: {_some(labels.table.columns)}."
        )
    columns = labels.table.drop(columns=[c for c in chosen if c in labels.table.columns])
    return Sample(
        labels.images, chosen, values, predictions.scores[order][:, at], labels.patient, labels.study, columns
    )


def _read(path: str | os.PathLike[str], text: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """A CSV file and the name of its column of images."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            # pandas fills short rows and cuts long ones without a word
            wrong = next((rows.line_num for row in rows if row and len(row) != len(header)), None)
        if not header:
            raise UserError(f"The table {path} is empty.")
        if wrong:
            raise UserError(f"The table {path}, line {wrong}, has not as many cells as its header ({len(header)}).")
        doubled = sorted({name for name in header if header.count(name) > 1})
        if doubled:
            raise UserError(f"The table {path} has the column {doubled[0]!r} more than once.")
        frame = pd.read_csv(
            path, names=header, header=0, dtype=dict.fromkeys((header[0], "image", *text), str), encoding="utf-8-sig",
            index_col=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"The table {path} does not exist.") from None
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The table {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise UserError(f"The table {path} is no proper CSV file: {str(error).strip()}.") from None
    image = "image" if "image" in frame.columns else str(frame.columns[0])
    if frame.empty:
        raise UserError(f"The table {path} has a header and no row.")
    if frame[image].isna().any():
        raise UserError(f"The table {path} has {int(frame[image].isna().sum())} rows without an image name.")
    if image != "image" and pd.to_numeric(frame[image], errors="coerce").notna().all():
        raise UserError(
            f"The table {path} must name its images in the first column or in one called 'image'; the column {image!r} "
            "holds numbers."
        )
    return frame, image


def _names(frame: pd.DataFrame, column: str, path: str | os.PathLike[str]) -> NDArray | None:
    if column not in frame.columns:
        if column not in ("patient", "study"):
            raise UserError(f"The labels {path} have no column {column!r}: {_some(frame.columns)}.")
        return None
    unknown = int(frame[column].isna().sum())
    if unknown:
        raise UserError(
            f"The labels {path} name no {column} for {unknown} of {len(frame)} images: name all or drop the column."
        )
    return frame[column].to_numpy(str)


def name_key(name: str, parts: int) -> tuple[str, ...]:
    """The last parts of a path, by which images are told apart."""
    return tuple(re.split(r"[\\/]+", name)[-parts:])


def name_parts(names: Sequence[str]) -> int:
    """How many parts of each path, from its end, tell the images apart; all where nothing does."""
    parts, longest = 1, max(len(name_key(name, 1000)) for name in names)
    while parts < longest and len({name_key(name, parts) for name in names}) < len(names):
        parts += 1
    return parts


def _matched(predictions: Predictions, labels: Labels) -> NDArray[np.intp]:
    """Row of the predictions for each row of the labels."""
    parts = name_parts(labels.images)
    given, wanted = ([name_key(n, parts) for n in names] for names in (predictions.images, labels.images))
    place = {key: row for row, key in enumerate(given)}
    problems = []
    for source, keys in ((predictions.source, given), (labels.source, wanted)):
        doubled = _doubled(keys)
        if doubled:
            problems.append(f"{len(doubled)} names occur more than once in {source} ({_some(map('/'.join, doubled))})")
    known = set(wanted)
    for what, keys in (
        (f"have no row in {predictions.source}", [key for key in wanted if key not in place]),
        (f"have no row in {labels.source}", [key for key in given if key not in known]),
    ):
        if keys:
            problems.append(f"{len(keys)} images {what} ({_some(map('/'.join, keys))})")
    if problems:
        stems = {os.path.splitext(key[-1])[0] for key in given} & {os.path.splitext(key[-1])[0] for key in wanted}
        hint = (
            " Names match without their endings: give both files the same." if stems and not known & set(given) else ""
        )
        raise UserError(f"Predictions and labels do not name the same images: {'; '.join(problems)}.{hint}")
    return np.array([place[key] for key in wanted], dtype=np.intp)


def _doubled(keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    seen: set[tuple[str, ...]] = set()
    return list(dict.fromkeys(key for key in keys if key in seen or seen.add(key)))  # type: ignore[func-returns-value]


def _classes(predictions: Predictions, labels: Labels, asked: Sequence[str], by: Sequence[str]) -> tuple[str, ...]:
    columns = list(labels.table.columns)
    for name in asked or predictions.classes:
        for source, names in ((predictions.source, predictions.classes), (labels.source, labels.classes or columns)):
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(f"There is no column for the class {name!r} in {source}.{hint} It has: {_some(names)}.")
    if asked:
        return tuple(dict.fromkeys(asked))
    unscored = [name for name in class_columns(labels, by) if name not in predictions.classes]
    if unscored:
        raise UserError(
            f"{len(unscored)} classes of {labels.source} have no scores in {predictions.source} ({_some(unscored)}): "
            "name the classes to use with --classes."
        )
    return predictions.classes


def class_columns(labels: Labels, by: Sequence[str] = ()) -> list[str]:
    """The classes of a label file: those that were named, else every column that holds nothing but labels."""
    if labels.classes is not None:
        return list(labels.classes)
    kept = (*RESERVED, *by)
    return [c for c in labels.table.columns if c not in kept and _looks_like_labels(labels.table[c])]


def _looks_like_labels(column: pd.Series) -> bool:
    values = pd.to_numeric(column.dropna(), errors="coerce")
    return bool(len(values) and values.isin((-1, 0, 1)).all())


def _label_values(labels: Labels, name: str, uncertain: Uncertain) -> NDArray[np.float64]:
    column = labels.table[name]
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isin(values, (-1, 0, 1)) | column.isna().to_numpy()))
    if len(bad):
        raise UserError(
            f"The labels {labels.source} have {len(bad)} values of {name!r} that are not 0, 1, -1 or empty, the first "
            f"{column.iloc[bad[0]]!r} for {labels.images[bad[0]]!r}."
        )
    return np.where(values == -1, {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[uncertain], values)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
