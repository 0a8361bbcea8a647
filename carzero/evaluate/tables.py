"""Predictions and labels, and the CSV files they are read from."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from carzero.errors import UserError

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
            raise UserError(f"The labels {path} have no column {column!r}: {some(frame.columns)}.")
        return None
    unknown = int(frame[column].isna().sum())
    if unknown:
        raise UserError(
            f"The labels {path} name no {column} for {unknown} of {len(frame)} images: name all or drop the column."
        )
    return frame[column].to_numpy(str)


def some(names: Iterable[str]) -> str:
    """The first of many names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
