"""Manifests from the folders in which people have the public chest radiograph sets."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from carzero.data.adapters.layout import FRONTAL
from carzero.errors import UserError

#: name -> what it reads; the module of that name has ``manifest(root, reports)``.
ADAPTERS = {
    "mimic_cxr": "MIMIC-CXR-JPG, or MIMIC-CXR (DICOM), with reports",
    "openi": "Open-i (Indiana University): PNGs with XML reports or the two CSV tables",
    "padchest": "PadChest: PNGs, Spanish reports, labels",
    "chexpert": "CheXpert, small or full; --reports takes the table of CheXpert Plus",
    "nih_cxr14": "NIH ChestX-ray14: labels",
    "vindr_cxr": "VinDr-CXR: DICOM, labels",
}


@dataclass(frozen=True)
class Made:
    """A manifest and what was left out of it.

    Args:
        table: image (path under the root), text, patient, study, view and split where the set has them, label columns.
        left_out: reason -> number of images.
    """

    table: pd.DataFrame
    left_out: dict[str, int]


def make_manifest(
    name: str,
    root: str | os.PathLike[str],
    *,
    reports: str | os.PathLike[str] | None = None,
    views: Literal["frontal", "all"] = "frontal",
    exclude: Iterable[str] = (),
    with_text: bool = True,
) -> Made:
    """The manifest of a data set in the layout in which it is published.

    Args:
        name: one of `ADAPTERS`.
        root: the set's folder.
        reports: folder or table of its reports, where they lie apart.
        views: "frontal" keeps the projections of `FRONTAL`, and images of sets that do not name views.
        exclude: images (path, file name, or name without suffix), studies or patients to leave out.
        with_text: leave out images without a text, where the set has texts.

    Raises:
        UserError: the name is unknown, the folder is not in that layout, or nothing is left.
    """
    if name not in ADAPTERS:
        raise UserError(f"data manifest: unknown set {name!r}. Known: {', '.join(ADAPTERS)}.")
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"data manifest: {folder} is no folder.")
    module = importlib.import_module(f"carzero.data.adapters.{name}")
    table: pd.DataFrame = module.manifest(folder, None if reports is None else Path(reports))
    names = set(map(str.strip, exclude)) - {""}
    reasons = [_reason(row, views, names, with_text) for row in table.to_dict("records")]
    kept = table[[reason is None for reason in reasons]].reset_index(drop=True)
    left_out = dict(Counter(reason for reason in reasons if reason is not None))
    if kept.empty:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "its tables have no rows"
        raise UserError(f"data manifest: no image of {folder} is left: {why}.")
    return Made(kept, left_out)


def write_manifest(table: pd.DataFrame, root: Path, out: Path) -> None:
    """Write a manifest as CSV or Parquet, its paths relative to its folder where the images lie below it.

    Raises:
        UserError: `out` is neither, or cannot be written.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"data manifest: --out must end in .csv or .parquet, got {out}.")
    folder, base = root.resolve(), out.resolve().parent
    inside = folder.is_relative_to(base)
    images = [(folder.relative_to(base) if inside else folder) / image for image in table["image"]]
    written = table.assign(image=[path.as_posix() for path in images])
    partial = out.with_name(f".{out.name}.partial")
    try:
        base.mkdir(parents=True, exist_ok=True)
        written.to_csv(partial, index=False) if out.suffix == ".csv" else written.to_parquet(partial, index=False)
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"data manifest: {out} cannot be written: {error.strerror}.") from None


def _reason(row: dict[str, str], views: str, exclude: set[str], with_text: bool) -> str | None:
    """Why an image is left out, or None."""
    image = Path(row["image"])
    if exclude & {row["image"], image.name, image.stem, row.get("study", ""), row.get("patient", "")}:
        return "excluded by the list"
    # a set that names no views has a blank for each
    if views == "frontal" and row.get("view", "").upper() not in FRONTAL | ({""} if "view" not in row else set()):
        return f"of another view ({row['view'] or 'not named'})"
    if with_text and "text" in row and not row["text"].strip():
        return "without a text"
    return None
