"""VinDr-CXR (PhysioNet): frontal DICOM files read by three radiologists (training) or by consensus (test)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import need, read


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image with a 0/1 column a label, as most of its readers say; no text, so `reports` is not read.

    ::

        root/train/IMAGE.dicom, root/test/IMAGE.dicom
        root/annotations/image_labels_train.csv, root/annotations/image_labels_test.csv

    The set names no patients; all its views are frontal (PA).

    Raises:
        UserError: a table is missing.
    """
    parts = []
    for split in ("train", "test"):
        path = need(root, [f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv"], f"{split} labels")
        table = read(path, ["image_id"])
        classes = [name for name in table.columns if name not in ("image_id", "rad_id", "rad_ID")]
        votes = table.groupby("image_id", sort=False)[classes].agg(lambda column: column.astype(float).mean())
        labels = (votes > 0.5).astype(int).astype(str).reset_index()
        rows = pd.DataFrame(
            {"image": [f"{split}/{name}.dicom" for name in labels["image_id"]], "view": "PA", "split": split}
        )
        parts.append(pd.concat([rows, labels[classes]], axis=1))
    return pd.concat(parts, ignore_index=True).fillna("")
