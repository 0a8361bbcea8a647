"""CheXpert (Stanford), small or full, and the reports of CheXpert Plus."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import find, read
from carzero.errors import UserError

CLASSES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image with a column a class: 1, 0, or empty where it is uncertain (-1) or not mentioned.

    ::

        root/train.csv, root/valid.csv[, root/test.csv]     Path begins with CheXpert-v1.0[-small]/
        root/train/patient00001/study1/view1_frontal.jpg
        `reports`                                           df_chexpert_plus_*.csv: findings and impression

    Without `reports` there is no text: CheXpert publishes labels alone.

    Raises:
        UserError: there is no table.
    """
    parts = []
    for split in ("train", "valid", "test"):
        path = find(root, [f"{split}.csv", f"{split}_labels.csv"])
        if path is None:
            continue
        table = read(path, ["Path"])
        # the first folder is the set's own name, which may be called otherwise on disk
        images = [p.split("/", 1)[1] if p.startswith("CheXpert") else p for p in table["Path"]]
        folders = [image.split("/") for image in images]
        part = pd.DataFrame(
            {"image": images, "patient": [f[-3] for f in folders], "study": ["/".join(f[-3:-1]) for f in folders]}
        )
        frontal = ["frontal" in f[-1] for f in folders]
        side = table["AP/PA"] if "AP/PA" in table else [""] * len(table)
        part["view"] = [(s or "FRONTAL") if front else "LATERAL" for s, front in zip(side, frontal)]
        part["split"] = split
        for name in CLASSES:
            if name in table:
                part[name] = table[name].map({"1.0": "1", "1": "1", "0.0": "0", "0": "0"}).fillna("")
        parts.append(part)
    if not parts:
        raise UserError(f"data manifest: {root} holds no train.csv, valid.csv or test.csv of CheXpert.")
    rows = pd.concat(parts, ignore_index=True)
    if reports is not None:
        said = read(reports, ["path_to_image", "section_findings", "section_impression"])
        texts = {
            Path(row.path_to_image).with_suffix("").as_posix(): " ".join(
                f"{row.section_findings} {row.section_impression}".split()
            )
            for row in said.itertuples()
        }
        rows.insert(1, "text", [texts.get(Path(image).with_suffix("").as_posix(), "") for image in rows["image"]])
    return rows
