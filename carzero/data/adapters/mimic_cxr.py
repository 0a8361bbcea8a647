"""MIMIC-CXR-JPG and MIMIC-CXR (DICOM), PhysioNet: images by patient and study, with their reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import find, findings_and_impression, need, read
from carzero.errors import UserError


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image, with findings and impression of its study and the official split.

    ::

        root/files/p10/p10000032/s50414267/IMAGE.jpg (or .dcm)
        root/mimic-cxr-*-metadata.csv[.gz]     ViewPosition; without it the DICOM headers are read
        root/mimic-cxr-*-split.csv[.gz]        train, validate, test
        root/files/p10/p10000032/s50414267.txt, or the same under `reports` or root/mimic-cxr-reports

    Raises:
        UserError: neither the metadata nor the record list is there.
    """
    metadata = find(root, ["mimic-cxr-*-metadata.csv*"])
    records = find(root, ["cxr-record-list.csv*"])
    if metadata is not None:
        table = read(metadata, ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    else:
        listed = records or need(root, ["mimic-cxr-*-metadata.csv*", "cxr-record-list.csv*"], "list of images")
        table = read(listed, ["dicom_id", "subject_id", "study_id"])
    suffix = ".dcm" if records is not None else ".jpg"
    studies = [
        f"files/p{patient[:2]}/p{patient}/s{study}" for patient, study in zip(table["subject_id"], table["study_id"])
    ]
    images = [f"{study}/{image}{suffix}" for study, image in zip(studies, table["dicom_id"])]
    views = table["ViewPosition"] if metadata is not None else [_view(root / image) for image in images]
    found = pd.DataFrame(
        {
            "image": images,
            "text": _texts(root, reports, studies),
            "patient": table["subject_id"],
            "study": table["study_id"],
            "view": list(views),
        }
    )
    split = find(root, ["mimic-cxr-*-split.csv*"])
    if split is not None:
        official = read(split, ["dicom_id", "split"]).set_index("dicom_id")["split"]
        found["split"] = table["dicom_id"].map(official).fillna("")
    return found


def _texts(root: Path, reports: Path | None, studies: list[str]) -> list[str]:
    folders = [f for f in (reports, root / "mimic-cxr-reports", root) if f is not None]
    read_once: dict[str, str] = {}
    for study in studies:
        if study not in read_once:
            path = next((f / f"{study}.txt" for f in folders if (f / f"{study}.txt").is_file()), None)
            text = path.read_text(encoding="utf-8", errors="replace") if path else ""
            read_once[study] = findings_and_impression(text)
    if not any(read_once.values()):
        raise UserError(
            f"data manifest: no report lies under {', '.join(map(str, folders))} (files/p10/p10000032/s50414267.txt); "
            "give their folder by --reports."
        )
    return [read_once[study] for study in studies]


def _view(path: Path) -> str:
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ViewPosition"])
    except (OSError, pydicom.errors.InvalidDicomError):
        return ""
    return str(header.get("ViewPosition", "") or "")
