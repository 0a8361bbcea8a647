"""An evaluation as one HTML file that needs no network."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from carzero.errors import UserError
from carzero.evaluate.bootstrap import Interval
from carzero.evaluate.curves import draw_curves
from carzero.evaluate.report import NOT_A_DEVICE, Report, show
from carzero.evaluate.tables import Sample
from carzero.templates import templates

#: Classes whose curves are drawn: those with the most positives.
DRAWN = 18


def write_page(report: Report, sample: Sample, path: Path, *, images: str) -> None:
    """Render the report with bars, curves and tables; autoescaped, so names cannot become markup.

    Args:
        report: the figures.
        sample: the scores and labels that curves are drawn of.
        path: file to write.
        images: a sentence that says whether the images are drawn or real.
    """
    environment = templates("carzero.evaluate")
    text = environment.get_template("page.html").render(_context(report, sample, images))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"The page {path} cannot be written: {error.strerror}.") from None


def _context(report: Report, sample: Sample, images: str) -> dict[str, Any]:
    e = report.evaluation
    figures = list(e.per_class.items())
    most = sorted(range(len(figures)), key=lambda c: -figures[c][1].positives)[:DRAWN]
    curves = []
    for c in sorted(most):
        drawn = draw_curves(sample.labels[:, c], sample.scores[:, c])
        if drawn is not None:
            curves.append({"name": figures[c][0], "auroc": show(figures[c][1].auroc), **vars(drawn)})
    tables = report.tables()
    tiles = [
        ("macro AUROC", e.overall["macro_auroc"]),
        ("macro AUPRC (trapezoid)", e.overall["macro_auprc_trapezoid"]),
        ("macro average precision", e.overall["macro_average_precision"]),
        *([("accuracy", e.accuracy)] if e.accuracy is not None else []),
    ]
    return {
        "title": report.title,
        "about": report.about(),
        "notice": f"{images} {NOT_A_DEVICE}",
        "tiles": [{"label": label, "value": _short(i), "more": _range(i)} for label, i in tiles],
        "bars": [_bar(name, f) for name, f in figures],
        "curves": curves,
        "curves_note": (
            "" if len(curves) == len(figures) else f"{len(curves)} of {len(figures)} classes, by number of positives."
        ),
        "tables": [
            {"heading": name, "columns": list(table.columns), "rows": table.astype(str).to_numpy().tolist()}
            for name, table in tables.items()
        ],
        "settings": {k: str(v) for k, v in report.settings.items() if v not in (None, [], "", False)},
        "footer": NOT_A_DEVICE,
    }  # fmt: skip


def _bar(name: str, f: Any) -> dict[str, Any]:
    known = not math.isnan(f.auroc.value)
    low, high = (f.auroc.low, f.auroc.high) if known and not math.isnan(f.auroc.low) else (f.auroc.value,) * 2
    return {
        "name": name, "defined": known, "value": _short(f.auroc), "range": _range(f.auroc),
        "left": 100 * low if known else 0, "width": 100 * (high - low) if known else 0,
        "at": 100 * f.auroc.value if known else 0, "positives": f.positives, "negatives": f.negatives,
        "ignored": f.ignored, "auprc": show(f.auprc_trapezoid), "ap": show(f.average_precision),
    }  # fmt: skip


def _short(interval: Interval) -> str:
    return "–" if math.isnan(interval.value) else f"{interval.value:.3f}"


def _range(interval: Interval) -> str:
    return "not defined" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"
