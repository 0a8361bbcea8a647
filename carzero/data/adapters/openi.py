"""Open-i (Indiana University): images with XML reports, or the two tables that circulate with them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd

from carzero.data.adapters.layout import find, need, read
from carzero.errors import UserError


def manifest(root: Path, reports: Path | None = None) -> pd.DataFrame:
    """A row an image, with findings and impression; words that were removed (XXXX) are left out.

    ::

        root/**/CXR1_1_IM-0001-3001.png    with root/**/ecgen-radiology/1.xml (or under `reports`), or
        root/**/1_IM-0001-4001.dcm.png     with root/indiana_projections.csv and root/indiana_reports.csv (views)

    The XML reports do not tell frontal from lateral views; the column view is missing then.

    Raises:
        UserError: neither layout is there, or a report is no XML.
    """
    projections = find(root, ["indiana_projections.csv", "*/indiana_projections.csv"])
    rows = _from_tables(projections, root) if projections is not None else _from_xml(root, reports or root)
    files = {path.name: path.relative_to(root).as_posix() for path in root.rglob("*.png")}
    # images that were not fetched are no rows
    rows = rows[rows["image"].isin(files)].reset_index(drop=True)
    rows["image"] = rows["image"].map(files)
    return rows


def _from_tables(projections: Path, root: Path) -> pd.DataFrame:
    table = read(projections, ["uid", "filename", "projection"])
    texts = read(need(projections.parent, ["indiana_reports.csv"], "reports"), ["uid", "findings", "impression"])
    said = {row.uid: _clean(f"{row.findings} {row.impression}") for row in texts.itertuples()}
    return pd.DataFrame(
        {
            "image": table["filename"],
            "text": [said.get(uid, "") for uid in table["uid"]],
            "patient": table["uid"],
            "study": table["uid"],
            "view": table["projection"].str.upper(),
        }
    )


def _from_xml(root: Path, reports: Path) -> pd.DataFrame:
    need(reports, ["**/ecgen-radiology/*.xml", "*.xml"], "XML report and no indiana_projections.csv")
    rows = []
    for path in sorted({*reports.glob("**/ecgen-radiology/*.xml"), *reports.glob("*.xml")}):
        try:
            report = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise UserError(f"data manifest: {path} is no XML report: {error}.") from None
        parts = {e.get("Label", "").lower(): e.text or "" for e in report.iter("AbstractText")}
        text = _clean(f"{parts.get('findings', '')} {parts.get('impression', '')}")
        rows += [
            {"image": f"{image.get('id')}.png", "text": text, "patient": path.stem, "study": path.stem}
            for image in report.iter("parentImage")
        ]
    return pd.DataFrame(rows, columns=["image", "text", "patient", "study"])


def _clean(text: str) -> str:
    return " ".join(re.sub(r"\bX{2,}\b", " ", text).split())
