"""PadChest (University of Alicante): PNGs with Spanish reports and English labels."""

from __future__ import annotations

import ast
from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import need, one_hot, read
from carzero.errors import UserError


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image: the report as published (Spanish, without accents and stop words) and a 0/1 column a label.

    ::

        root/PADCHEST_chest_x_ray_images_labels_160K_*.csv[.gz]
        root/0/IMAGE.png ... root/54/IMAGE.png, or all in root or root/images

    `method` says whether physicians or a network set the labels; the 39,053 images of the published evaluation are
    those of Physician. `reports` is not read: the table holds them.

    Raises:
        UserError: the table is missing, or its labels are no list.
    """
    path = need(root, ["PADCHEST_chest_x_ray_images_labels*.csv*"], "table of labels")
    columns = ["ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Report", "Labels"]
    table = read(path, columns)
    labels = [_labels(cell, path) for cell in table["Labels"]]
    flat = next((folder for folder in ("", "images/") if (root / folder / table["ImageID"].iloc[0]).is_file()), None)
    folders = [f"{name}/" for name in table["ImageDir"]] if flat is None else [flat] * len(table)
    rows = pd.DataFrame(
        {
            "image": [f"{folder}{name}" for folder, name in zip(folders, table["ImageID"])],
            "text": table["Report"].str.split().str.join(" "),
            "patient": table["PatientID"],
            "study": table["StudyID"],
            "view": table["Projection"].str.upper(),
            "method": table["MethodLabel"],
        }
    )
    return pd.concat([rows, one_hot(labels, sorted({name for names in labels for name in names}))], axis=1)


def _labels(cell: str, path: Path) -> list[str]:
    try:
        found = ast.literal_eval(cell) if cell.strip() else []
        return [str(name).strip().lower() for name in found if str(name).strip()]
    except (ValueError, SyntaxError, TypeError):
        raise UserError(f"data manifest: {path} has labels that are no list: {cell[:80]!r}.") from None
