"""Hand-drawn boxes of findings: the files they come in, by image and finding."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from carzero.errors import UserError

#: x0, y0, x1, y1 in continuous pixel coordinates: the pixel (i, j) covers [i, i + 1) x [j, j + 1).
Box: TypeAlias = "tuple[float, float, float, float]"

_IMAGE = ("image", "image_index", "file_name", "filename", "file", "path")
_FINDING = ("finding", "finding_label", "class", "label")
_CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"))


@dataclass(frozen=True)
class BoxSet:
    """Boxes of a set of images.

    Args:
        boxes: image stem (file name without folder and ending) -> finding as `finding_key` writes it -> its boxes.
        size: (width, height) of the images that the boxes were drawn on; None: the images that are read.
    """

    boxes: Mapping[str, Mapping[str, tuple[Box, ...]]]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of boxes."""
        return sum(len(found) for findings in self.boxes.values() for found in findings.values())

    @property
    def findings(self) -> list[str]:
        """Keys of all findings, sorted."""
        return sorted({name for findings in self.boxes.values() for name in findings})

    def of(self, image: str | os.PathLike[str], finding: str, width: int, height: int) -> tuple[Box, ...]:
        """Boxes of a finding on an image, in pixels of that image of width x height; none: an empty tuple."""
        found = self.boxes.get(image_key(image), {}).get(finding_key(finding), ())
        if self.size is None:
            return found
        across, down = width / self.size[0], height / self.size[1]
        return tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in found)


def image_key(image: str | os.PathLike[str]) -> str:
    """What an image is joined by: its file name without folder and ending."""
    return Path(str(image).replace("\\", "/")).stem


def finding_key(finding: str) -> str:
    """What a finding is joined by: lower case, ``_`` as a space; NIH's "Infiltrate" is its label "Infiltration"."""
    key = " ".join(finding.replace("_", " ").casefold().split())
    return "infiltration" if key == "infiltrate" else key


def read_boxes(path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> BoxSet:
    """Boxes from a file.

    - ``.json`` as ChestX-Det10 has it: ``[{"file_name": ..., "syms": [finding, ...], "boxes": [[x0, y0, x1, y1]]}]``
    - ``.csv`` with a box a row: an image column (image, image_index, file_name, ...), a finding column (finding,
      finding label, class, label), and x0 y0 x1 y1, xmin ymin xmax ymax, or x y w h. NIH's ``BBox_List_2017.csv`` is
      one.

    Args:
        path: of the file.
        size: (width, height) of the images that the boxes were drawn on, where other sizes are read.
    Raises:
        UserError: it cannot be read; the sentence names the file and the row.
    """
    path = Path(path)
    readers = {".json": _from_json, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise UserError(f"The file of boxes {path} must end in {' or '.join(readers)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The file of boxes {path} does not exist.") from None
    except OSError as error:
        raise UserError(f"The file of boxes {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The file of boxes {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    boxes: dict[str, dict[str, list[Box]]] = {}
    files: dict[str, str] = {}
    try:
        for place, image, finding, box in readers[path.suffix.lower()](text):
            key = image_key(image)
            if files.setdefault(key, image) != image:
                raise UserError(
                    f"{place}: {image!r} and {files[key]!r} are one image without their folders and endings."
                )
            boxes.setdefault(key, {}).setdefault(finding_key(finding), []).append(_checked(place, box))
    except UserError as error:
        raise UserError(f"The file of boxes {path} cannot be used: {error}") from None
    if not boxes:
        raise UserError(f"The file of boxes {path} holds no box.")
    frozen = {image: {name: tuple(found) for name, found in findings.items()} for image, findings in boxes.items()}
    return BoxSet(frozen, size)


Row: TypeAlias = "tuple[str, str, str, tuple[Any, ...]]"


def _from_json(text: str) -> Iterator[Row]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"line {error.lineno}, column {error.colno}: {error.msg}.") from None
    wanted = 'it must hold a list of {"file_name": ..., "syms": [...], "boxes": [[x0, y0, x1, y1], ...]}.'
    if not isinstance(entries, list):
        raise UserError(wanted)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not {"file_name", "syms", "boxes"} <= entry.keys():
            raise UserError(f"entry {number}: {wanted}")
        if len(entry["syms"]) != len(entry["boxes"]):
            raise UserError(f"entry {number}: {len(entry['syms'])} findings (syms) for {len(entry['boxes'])} boxes.")
        for finding, box in zip(entry["syms"], entry["boxes"]):
            yield f"entry {number}", str(entry["file_name"]), str(finding), tuple(box)


def _from_csv(text: str) -> Iterator[Row]:
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    header = [_column(name) for name in next(rows, [])]
    image = next((header.index(name) for name in _IMAGE if name in header), None)
    finding = next((header.index(name) for name in _FINDING if name in header), None)
    corners = next((names for names in (*_CORNERS, *_SIZES) if set(names) <= set(header)), None)
    if image is None or finding is None or corners is None:
        raise UserError(
            f"line 1: the header needs an image, a finding, and x0 y0 x1 y1 or x y w h, got {', '.join(header)}."
        )
    places = [header.index(name) for name in corners]
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(image, finding, *places):
            raise UserError(f"line {rows.line_num}: {len(row)} cells where the header has {len(header)}.")
        a, b, c, d = (row[place] for place in places)
        if corners in _SIZES:
            try:
                c, d = str(float(a) + float(c)), str(float(b) + float(d))
            except ValueError:
                raise UserError(
                    f"line {rows.line_num}: a box needs four numbers, got {', '.join((a, b, c, d))}."
                ) from None
        yield f"line {rows.line_num}", row[image].strip(), row[finding].strip(), (a, b, c, d)


def _column(name: str) -> str:
    """NIH's header is ``Image Index,Finding Label,Bbox [x,y,w,h],,,``, brackets and all."""
    return name.strip().lower().removeprefix("bbox [").removesuffix("]").strip().replace(" ", "_")


def _checked(place: str, box: tuple[Any, ...]) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        raise UserError(f"{place}: a box needs four numbers, got {', '.join(map(str, box))}.") from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise UserError(f"{place}: a box needs x0 < x1 and y0 < y1, got {x0:g}, {y0:g}, {x1:g}, {y1:g}.")
    return x0, y0, x1, y1
