"""NIH ChestX-ray14: labels mined from reports that are not published."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import find, need, one_hot, read

CLASSES = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image with a 0/1 column a class and the official split; there is no text, so `reports` is not read.

    ::

        root/Data_Entry_2017*.csv, root/train_val_list.txt, root/test_list.txt
        root/images_001/images/00000001_000.png ..., or root/images/

    Raises:
        UserError: the table is missing.
    """
    table = read(
        need(root, ["Data_Entry_2017*.csv"], "table of labels"),
        ["Image Index", "Finding Labels", "Patient ID", "View Position"],
    )
    folders = [f for f in ("images", *(f"images_{n:03}/images" for n in range(1, 13))) if (root / f).is_dir()]
    where = {path.name: path.relative_to(root).as_posix() for folder in folders for path in (root / folder).iterdir()}
    rows = pd.DataFrame(
        {
            "image": [where.get(name, f"images/{name}") for name in table["Image Index"]],
            "patient": table["Patient ID"],
            "view": table["View Position"],
        }
    )
    lists = {"train": find(root, ["train_val_list*.txt"]), "test": find(root, ["test_list*.txt"])}
    split = {
        name.strip(): part
        for part, path in lists.items()
        if path
        for name in path.read_text().split("\n")
        if name.strip()
    }
    if split:
        rows["split"] = table["Image Index"].map(split).fillna("")
    return pd.concat([rows, one_hot(table["Finding Labels"].str.split("|"), CLASSES)], axis=1)
