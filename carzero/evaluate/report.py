"""An evaluation as plain types for JSON, and as printed tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from carzero.evaluate.benchmark import Benchmark
from carzero.evaluate.bootstrap import Interval
from carzero.evaluate.compare import Difference
from carzero.evaluate.evaluation import NAMES, ClassFigures, Evaluation
from carzero.evaluate.operating import OperatingPoint

NOT_A_DEVICE = "This is not a medical device: nothing here may be used for a diagnosis."
PLURAL = {"image": "images", "study": "studies", "patient": "patients"}
#: How figures are called in tables.
TITLES = {"auroc": "AUROC", "auprc_trapezoid": "AUPRC (trapezoid)", "average_precision": "average precision"}


_TITLE = {
    "ppv": "PPV", "npv": "NPV", "f1": "F1", "mcc": "MCC", "ppv_at_prevalence": "PPV at the stated prevalence",
    "npv_at_prevalence": "NPV at the stated prevalence",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """An evaluation and all that stands beside it.

    Args:
        title: first line of every table: what was measured, and on which list of images.
        evaluation: the figures.
        n_images: before images were pooled into units.
        unit: what a row is.
        benchmark: whose published figures stand beside ours.
        operating: how thresholds were chosen, and where; None without them.
        comparison: differences to the other model, with its name.
        checks: figures of the checks for known weaknesses, ready for JSON.
        notes: sentences that a reader must know.
        settings: what was asked for, ready for JSON.
    """

    title: str
    evaluation: Evaluation
    n_images: int
    unit: str = "image"
    benchmark: Benchmark | None = None
    operating: str | None = None
    comparison: tuple[str, dict[str, Difference]] | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain types; a figure that is not defined is null."""
        e = self.evaluation
        unit, units, reason = e.drawn
        result: dict[str, Any] = {"title": self.title, "benchmark": self.benchmark.name if self.benchmark else None}
        for name, interval in e.overall.items():
            result |= _pair(name, interval)
        if e.accuracy is not None:
            result |= _pair("accuracy", e.accuracy)
        result |= {
            "per_class": {name: _class(figures) for name, figures in e.per_class.items()},
            "groups": {
                name: {"classes": list(group.classes)}
                | {k: v for figure in NAMES for k, v in _pair(figure, getattr(group, figure)).items()}
                for name, group in e.groups.items()
            },
            "undefined": e.undefined,
            "n_images": self.n_images,
            "n_patients": e.n_patients,
            "unit": self.unit,
            "n_units": e.n_rows,
            "intervals": {
                "level": e.level, "resamples": e.resamples, "seed": e.seed, "drawn": unit, "n_drawn": units,
                "reason": reason,
            },
            "subgroups": {name: _split(split) for name, split in e.splits.items()},
            "operating_point": self.operating,
        }  # fmt: skip
        if self.comparison is not None:
            other, differences = self.comparison
            result["comparison"] = {
                "other": other,
                **{
                    name: _pair("difference", d.interval)
                    | {k: _number(v) for k, v in vars(d).items() if k != "interval"}
                    for name, d in differences.items()
                },
            }
        result["references"] = self._references(result)
        result |= {"checks": self.checks, "notes": list(self.notes), "settings": self.settings}
        return _plain(result)

    def _references(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        rows = []
        for reference in self.benchmark.references if self.benchmark else ():
            ours = lookup(found, reference.figure)
            rows.append(
                vars(reference) | {"ours": ours, "difference": None if ours is None else ours - reference.value}
            )
        return rows

    def per_class(self) -> pd.DataFrame:
        """A row a class and a column a figure, intervals as ``_low`` and ``_high``."""
        rows = []
        for name, figures in self.evaluation.per_class.items():
            row: dict[str, Any] = {"class": name}
            for key, value in _class(figures).items():
                if key == "operating":
                    row |= _flat(value)
                else:
                    row |= _flat({key: value})
            rows.append(row)
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Means over classes, and those of head, medium, tail and rarest classes, as printed."""
        e = self.evaluation
        rows = []
        for mean in ("macro", "micro", "weighted"):
            values = [e.overall[f"{mean}_{f}"] for f in NAMES]
            rows.append([f"{mean} mean", len(e.per_class) - len(e.undefined), *map(show, values)])
        for name, group in e.groups.items():
            if name == "rarest" and len(group.classes) == len(e.per_class):
                continue
            label = f"rarest {len(group.classes)}" if name == "rarest" else name
            rows.append([label, len(group.classes), *(show(getattr(group, f)) for f in NAMES)])
        if e.accuracy is not None:
            rows.append(["accuracy", len(e.per_class), show(e.accuracy), "", ""])
        return pd.DataFrame(rows, columns=["", "classes", *TITLES.values()])

    def classes(self) -> pd.DataFrame:
        """The classes, as printed."""
        rows = [
            [name, f.positives, f.negatives, f.ignored, *(show(getattr(f, figure)) for figure in NAMES)]
            for name, f in self.evaluation.per_class.items()
        ]
        return pd.DataFrame(rows, columns=["class", "positives", "negatives", "ignored", *TITLES.values()])

    def operating_table(self) -> pd.DataFrame | None:
        """Figures at thresholds, as printed."""
        rows = []
        for name, f in self.evaluation.per_class.items():
            if f.operating is None:
                return None
            threshold = "none" if math.isnan(f.operating.threshold) else f"{f.operating.threshold:.4g}"
            figures = {_TITLE.get(k, k): show(interval) for k, interval in f.operating.figures.items()}
            rows.append({"class": name, "threshold": threshold, **figures})
        # a class without a stated prevalence has no figure at it
        return pd.DataFrame(rows).fillna("")

    def published(self) -> pd.DataFrame | None:
        """Figures of the literature beside ours, as printed."""
        rows = [
            [
                r["model"],
                r["figure"],
                f"{r['value']:.3f}",
                "-" if r["ours"] is None else f"{r['ours']:.3f}",
                r["source"],
            ]
            for r in self.as_json()["references"]
        ]
        return pd.DataFrame(rows, columns=["model", "figure", "published", "here", "source"]) if rows else None

    def subgroups(self) -> pd.DataFrame | None:
        """Groups of images, as printed."""
        rows: list[list[Any]] = []
        for column, split in self.evaluation.splits.items():
            for name, g in split.groups.items():
                rows.append([column, name if g.in_gap else f"{name} *", g.rows, show(g.macro_auroc)])
            gap = f"{split.best} less {split.worst}" if split.best else "no two groups can be compared"
            rows.append([column, f"gap: {gap}", "", show(split.gap)])
        return pd.DataFrame(rows, columns=["by", "group", "rows", "macro AUROC"]) if rows else None

    def compared(self) -> pd.DataFrame | None:
        """Differences to the other model, as printed."""
        if self.comparison is None:
            return None
        rows = [
            [n, show(d.interval), *(_p(getattr(d, k)) for k in list(vars(d))[1:])]
            for n, d in self.comparison[1].items()
        ]
        return pd.DataFrame(
            rows,
            columns=[
                "class",
                "AUROC difference",
                "p, bootstrap",
                "p, DeLong",
                "corrected, bootstrap",
                "corrected, DeLong",
            ],
        )

    def check_table(self) -> pd.DataFrame | None:
        """The checks' figures, as printed: each `rows` entry of a check is one."""
        rows = [
            [check, row["name"], show(Interval(*(math.nan if v is None else v for v in row["interval"]))), row["reads"]]
            for check, found in self.checks.items()
            for row in found["rows"]
        ]
        return pd.DataFrame(rows, columns=["check", "figure", "value", "how to read it"]) if rows else None

    def tables(self) -> dict[str, pd.DataFrame]:
        """All printed tables by their heading."""
        found = {
            "Means over classes": self.summary(), "Beside published figures": self.published(),
            "Classes": self.classes(), "At a threshold": self.operating_table(),
            "Groups of images": self.subgroups(), "Against the other model": self.compared(),
            "Known weaknesses": self.check_table(),
        }  # fmt: skip
        return {name: table for name, table in found.items() if table is not None}

    def about(self) -> list[str]:
        """The sentences under the title."""
        e = self.evaluation
        unit, units, reason = e.drawn
        patients = "patients not named" if e.n_patients is None else f"{e.n_patients:,} patients"
        rows = "" if self.unit == "image" else f", pooled into {e.n_rows:,} {PLURAL[self.unit]}"
        about = [
            f"{self.n_images:,} images{rows}; {patients}; {len(e.per_class)} classes.",
            f"Brackets: {e.level:.0%} intervals, {e.resamples:,} bootstrap resamples of {units:,} {PLURAL[unit]} "
            f"({reason}).",
        ]
        if e.undefined:
            about.append(f"Without positives or without negatives, so left out of means: {', '.join(e.undefined)}.")
        if self.operating:
            about.append(f"Operating point: {self.operating}.")
        return [*about, *self.notes]


def lookup(found: Mapping[str, Any], figure: str) -> float | None:
    """A figure of the JSON report by its dotted key."""
    value: Any = found
    for part in figure.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def show(interval: Interval) -> str:
    """A figure with its interval, as tables print it."""
    if math.isnan(interval.value):
        return "not defined"
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return str(interval)


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _class(figures: ClassFigures) -> dict[str, Any]:
    row: dict[str, Any] = {k: getattr(figures, k) for k in ("positives", "negatives", "ignored")}
    for figure in NAMES:
        row |= _pair(figure, getattr(figures, figure))
    if figures.operating is not None:
        row["operating"] = _operating(figures.operating)
    return row


def _operating(point: OperatingPoint) -> dict[str, Any]:
    row: dict[str, Any] = {"threshold": _number(point.threshold), "prevalence": point.prevalence}
    for name, interval in point.figures.items():
        row |= _pair(name, interval)
    return row


def _split(split: Any) -> dict[str, Any]:
    return {
        "classes": list(split.classes),
        "groups": {
            name: {"n": g.rows, "in_gap": g.in_gap, **_pair("macro_auroc", g.macro_auroc)}
            | {"per_class": {c: {"positives": g.positives[c], **_pair("auroc", i)} for c, i in g.auroc.items()}}
            for name, g in split.groups.items()
        },
        **_pair("gap", split.gap), "best": split.best, "worst": split.worst,
    }  # fmt: skip


def _pair(name: str, interval: Interval) -> dict[str, Any]:
    return {name: _number(interval.value), f"{name}_ci": [_number(interval.low), _number(interval.high)]}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("_ci"):
            row |= {f"{key[:-3]}_low": value[0], f"{key[:-3]}_high": value[1]}
        else:
            row[key] = value
    return row


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    """The same in types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
