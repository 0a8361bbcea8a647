"""What can be downloaded: a table of scores, a picture of a map. Neither holds a file's name or a DICOM header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from carzero.app.pictures import common_ceiling, overlay_png

if TYPE_CHECKING:
    from carzero.app.desk import Reading


def score_table(reading: Reading) -> pd.DataFrame:
    """A row a finding, in the order asked, with these columns:

    ``image`` (`Radiograph.tag`), ``drawn``, ``finding``, ``prompt``, ``logit``, ``quantile``, ``probability``,
    ``denial``, ``denial_logit``, ``margin`` (prompt above denial, in logits) and ``guard`` (what an image that is no
    upright frontal chest radiograph looks like). Cells without a value are empty.
    """
    shot = reading.radiograph
    rows = [
        {
            "image": shot.tag, "drawn": shot.drawn, "finding": one.finding, "prompt": one.prompt, "logit": one.logit,
            "quantile": one.quantile, "probability": one.probability, "denial": one.denial,
            "denial_logit": one.denial_logit, "margin": one.margin, "guard": shot.verdict.looks,
        }
        for one in reading.answers
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_scores(reading: Reading, folder: Path) -> Path:
    """`score_table` as ``scores_<tag>.csv``."""
    path = folder / f"scores_{reading.radiograph.tag}.csv"
    score_table(reading).to_csv(path, index=False)
    return path


def write_map(reading: Reading, number: int, folder: Path) -> Path:
    """The map of a finding that was looked at, ``map_<tag>_<finding>.png``, in pixels of the original."""
    statement, denied = reading.maps[number]
    said = re.sub(r"[^a-z0-9]+", "-", reading.answers[number].finding.lower()).strip("-")[:40]
    path = folder / f"map_{reading.radiograph.tag}_{said or number}.png"
    path.write_bytes(overlay_png(statement, common_ceiling(statement, denied)))
    return path
