"""Predictions put to labels by image name, never by row."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from carzero.errors import UserError
from carzero.evaluate.tables import Labels, Predictions, Sample, some

Uncertain = Literal["ignore", "positive", "negative"]
#: Columns of a label file that are never classes.
RESERVED = ("image", "patient", "study", "sex", "age", "view")


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
            f"The labels {labels.source} have no column {missing[0]!r}. They have: {some(labels.table.columns)}."
        )
    columns = labels.table.drop(columns=[c for c in chosen if c in labels.table.columns])
    return Sample(
        labels.images, chosen, values, predictions.scores[order][:, at], labels.patient, labels.study, columns
    )


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
            problems.append(f"{len(doubled)} names occur more than once in {source} ({some(map('/'.join, doubled))})")
    known = set(wanted)
    for what, keys in (
        (f"have no row in {predictions.source}", [key for key in wanted if key not in place]),
        (f"have no row in {labels.source}", [key for key in given if key not in known]),
    ):
        if keys:
            problems.append(f"{len(keys)} images {what} ({some(map('/'.join, keys))})")
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
                raise UserError(f"There is no column for the class {name!r} in {source}.{hint} It has: {some(names)}.")
    if asked:
        return tuple(dict.fromkeys(asked))
    unscored = [name for name in class_columns(labels, by) if name not in predictions.classes]
    if unscored:
        raise UserError(
            f"{len(unscored)} classes of {labels.source} have no scores in {predictions.source} ({some(unscored)}): "
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
