"""Readers of the official label files of public benchmarks: each makes `Labels` of one."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carzero.errors import UserError
from carzero.evaluate.joining import name_key, name_parts
from carzero.evaluate.tables import Labels, read_labels

#: Synonyms that the published evaluation of Open-i adds to a class's own name.
_OPENI_ALSO = {
    "Pleural_Thickening": "pleural thickening",
    "Infiltration": "infiltrate",
    "Atelectasis": "atelectases",
}  # fmt: skip


def read_openi(path: Path, classes: Sequence[str]) -> Labels:
    """Open-i's ``custom.csv``: a class is present where its lower-case name, or synonym, is in `labels_automatic`."""
    frame = _csv(path, ("file_name", "uid", "labels_automatic"))
    said = frame["labels_automatic"].fillna("").str.lower()
    columns = {}
    for name in classes:
        has = said.str.contains(name.lower(), regex=False)
        if name in _OPENI_ALSO:
            has |= said.str.contains(_OPENI_ALSO[name], regex=False)
        columns[name] = has.astype(int)
    # a uid is a report; the files do not say which reports are of one patient
    return Labels(str(path), frame["file_name"].tolist(), pd.DataFrame(columns), study=frame["uid"].to_numpy(str),
                  classes=tuple(classes))  # fmt: skip


def read_chestxdet10(path: Path, classes: Sequence[str]) -> Labels:
    """ChestX-Det10's ``test.json``: a list of ``{"file_name": ..., "syms": [class, ...]}``."""
    entries = _json(path)
    try:
        images, found = [e["file_name"] for e in entries], [e["syms"] for e in entries]
    except (TypeError, KeyError):
        raise UserError(f"The labels {path} must be a list of objects with file_name and syms.") from None
    return _from_lists(path, images, found, classes, strict=True)


def read_padchest(path: Path, classes: Sequence[str]) -> Labels:
    """PadChest's published ``manual_image.json`` ``{image: [label, ...]}``, or its official CSV file (also gzipped).

    Of the CSV file the rows that a physician labelled are kept; it also gives patients, studies, sex and view. Without
    `classes` every label of the file is one, in alphabetical order.
    """
    if path.suffix == ".json":
        entries = _json(path)
        if not isinstance(entries, dict) or not all(isinstance(v, list) for v in entries.values()):
            raise UserError(f"The labels {path} must be an object that gives each image a list of labels.")
        return _from_lists(path, list(entries), list(entries.values()), classes, strict=False)
    frame = _csv(path, ("ImageID", "StudyID", "PatientID", "MethodLabel", "Labels"))
    frame = frame[frame["MethodLabel"].fillna("") == "Physician"].reset_index(drop=True)
    if frame.empty:
        raise UserError(f"The labels {path} have no row with the MethodLabel Physician.")
    found = []
    for text in frame["Labels"].fillna("[]"):
        try:
            found.append([str(label).strip() for label in ast.literal_eval(text)])
        except (ValueError, SyntaxError, TypeError):
            raise UserError(f"The labels {path} have a cell that is no list of labels: {text!r}.") from None
    labels = _from_lists(path, frame["ImageID"].tolist(), found, classes, strict=False)
    other = _renamed(frame, {"PatientSex_DICOM": "sex", "Projection": "view"})
    return Labels(labels.source, labels.images, pd.concat([labels.table, other], axis=1),
                  frame["PatientID"].to_numpy(str), frame["StudyID"].to_numpy(str), labels.classes)  # fmt: skip


def read_chestxray14(path: Path, classes: Sequence[str]) -> Labels:
    """ChestX-ray14's published ``test_list.txt`` (path and 14 labels a line) or NIH's ``Data_Entry_2017`` CSV file."""
    if path.suffix.lower() != ".csv":
        rows = [line.split() for line in _text(path).splitlines() if line.strip()]
        wrong = next((i for i, row in enumerate(rows, 1) if len(row) != 1 + len(classes)), None)
        if not rows or wrong:
            raise UserError(
                f"The labels {path}, line {wrong or 1}: a path and {len(classes)} labels are needed. A list of names "
                "alone goes to --list, with NIH's Data_Entry_2017 CSV file as --labels."
            )
        images = [row[0] for row in rows]
        table = pd.DataFrame([row[1:] for row in rows], columns=list(classes))
        return Labels(str(path), images, table, patient=_nih_patients(path, images), classes=tuple(classes))
    frame = _csv(path, ("Image Index", "Finding Labels", "Patient ID"))
    images = frame["Image Index"].tolist()
    found = [
        [label for label in text.split("|") if label != "No Finding"] for text in frame["Finding Labels"].fillna("")
    ]
    labels = _from_lists(path, images, found, classes, strict=True)
    other = _renamed(
        frame, {"Patient Gender": "sex", "Patient Sex": "sex", "Patient Age": "age", "View Position": "view"}
    )
    if "age" in other:
        # early releases write 058Y
        other["age"] = pd.to_numeric(other["age"].astype(str).str.rstrip("Y"), errors="coerce")
    return Labels(labels.source, images, pd.concat([labels.table, other], axis=1),
                  frame["Patient ID"].to_numpy(str), classes=labels.classes)  # fmt: skip


def read_chexpert(path: Path, classes: Sequence[str]) -> Labels:
    """CheXpert's CSV files: `Path` and a column per finding; patients and studies are folders of the path."""
    frame = _csv(path, ("Path", *classes))
    parts = [re.search(r"(patient\d+)[\\/](study\d+)[\\/]", name) for name in frame["Path"]]
    if not all(parts):
        wrong = next(name for name, part in zip(frame["Path"], parts) if not part)
        raise UserError(f"The labels {path} have the path {wrong!r}, which names no patient and study.")
    other = _renamed(frame, {"Sex": "sex", "Age": "age", "Frontal/Lateral": "view"})
    table = pd.concat([frame[list(classes)], other], axis=1)
    return Labels(str(path), frame["Path"].tolist(), table, np.array([p[1] for p in parts if p]),
                  np.array([p[2] for p in parts if p]), tuple(classes))  # fmt: skip


def read_table(path: Path, classes: Sequence[str]) -> Labels:
    """This package's own form, see `carzero.evaluate.tables.read_labels`."""
    labels = read_labels(path)
    if not classes:
        return labels
    absent = [name for name in classes if name not in labels.table.columns]
    if absent:
        raise UserError(f"The labels {path} have no column {absent[0]!r}.")
    return Labels(labels.source, labels.images, labels.table, labels.patient, labels.study, tuple(classes))


#: reader's name in a benchmark file -> function of a path and classes
READERS: dict[str, Callable[[Path, Sequence[str]], Labels]] = {
    "openi": read_openi, "padchest": read_padchest, "chestxray14": read_chestxray14, "chexpert": read_chexpert,
    "chestxdet10": read_chestxdet10, "table": read_table,
}  # fmt: skip


def only_listed(labels: Labels, path: str | os.PathLike[str]) -> Labels:
    """The labels of the images that a list names: a file with a name or path a line, compared as `join` does.

    Raises:
        UserError: a listed image has no label.
    """
    lines = [line.strip().split(",")[0] for line in _text(Path(path)).splitlines() if line.strip()]
    if lines and lines[0].lower() in ("path", "image", "image index"):
        lines = lines[1:]
    parts = name_parts(labels.images)
    place = {name_key(name, parts): row for row, name in enumerate(labels.images)}
    wanted = [name_key(line, parts) for line in lines]
    absent = ["/".join(name) for name in wanted if name not in place]
    if absent or not wanted:
        raise UserError(
            f"The list {path} names {len(wanted)} images; {len(absent)} of them have no label in {labels.source}"
            f"{' (' + ', '.join(absent[:5]) + ')' if absent else ''}."
        )
    if len(set(wanted)) < len(wanted):
        raise UserError(f"The list {path} names {len(wanted) - len(set(wanted))} images more than once.")
    rows = np.array([place[name] for name in wanted])
    return Labels(
        labels.source, [labels.images[i] for i in rows], labels.table.iloc[rows].reset_index(drop=True),
        None if labels.patient is None else labels.patient[rows], None if labels.study is None else labels.study[rows],
        labels.classes,
    )  # fmt: skip


def _from_lists(
    path: Path, images: list[str], found: list[list[str]], classes: Sequence[str], *, strict: bool
) -> Labels:
    named = sorted({label for labels in found for label in labels if label})
    unknown = [label for label in named if label not in classes]
    if strict and unknown:
        raise UserError(f"The labels {path} name the class {unknown[0]!r}, which this benchmark does not have.")
    columns = {name: np.zeros(len(images), int) for name in (classes or named)}
    for row, labels in enumerate(found):
        for label in labels:
            if label in columns:
                columns[label][row] = 1
    return Labels(str(path), images, pd.DataFrame(columns), classes=tuple(columns))


def _nih_patients(path: Path, images: list[str]) -> np.ndarray:
    parts = [re.fullmatch(r"(\d+)_\d+\.\w+", re.split(r"[\\/]", name)[-1]) for name in images]
    if not all(parts):
        wrong = next(name for name, part in zip(images, parts) if not part)
        raise UserError(f"The labels {path} have the image {wrong!r}, whose name is not that of an NIH image.")
    return np.array([p[1] for p in parts if p])


def _renamed(frame: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    present = {old: new for old, new in names.items() if old in frame.columns}
    return frame[list(present)].rename(columns=present)


def _csv(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise UserError(f"The label file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise UserError(f"The label file {path} cannot be read: {str(error).strip()}.") from None
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise UserError(
            f"The label file {path} has no column {absent[0]!r}: it has {', '.join(map(str, frame.columns[:8]))}."
        )
    if frame.empty or frame[needed[0]].isna().any():
        raise UserError(f"The label file {path} has no row, or rows without {needed[0]}.")
    return frame


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {path} cannot be read: {error}.") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"The labels {path} are no JSON: line {error.lineno}, {error.msg}.") from None
