"""The page of a run: ``summary.html`` and ``plots/``, made from its tables, so it can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carzero.templates import templates
from carzero.train.config import TrainConfig
from carzero.train.folder import versions
from carzero.train.options import to_yaml


def write_summary(
    out: Path, config: TrainConfig, *, step: int, steps: int, source: str, parameters: int
) -> Path | None:
    """Write ``plots/*.svg`` and ``summary.html`` from ``metrics.csv`` and ``validation.csv``.

    Args:
        step, steps: steps done, and the length of the run.
        source: where its weights come from.
        parameters: how many it has.

    Returns:
        the page, or None where no step was done yet.
    """
    metrics = pd.read_csv(out / "metrics.csv")
    if metrics.empty:
        return None
    path = out / "validation.csv"
    validation = pd.read_csv(path) if path.exists() else pd.DataFrame()
    plots = {
        name: _plot(out, name, table, columns, label) for name, table, columns, label in _plans(metrics, validation)
    }
    last = metrics.iloc[-1]
    waiting = np.average(metrics["data_wait"], weights=1 / metrics["images_per_s"])
    figures = {
        "steps": f"{step:,} of {steps:,}",
        "loss, mean of the last 50 steps": f"{metrics['loss'].tail(50).mean():.4f}",
        "images/s, median": f"{metrics['images_per_s'].median():.1f}",
        "share of time waiting for data": f"{waiting:.1%}",
        "peak memory": f"{metrics['peak_mib'].max():,.0f} MiB",
        "learning rate at the end": f"{last['lr']:.3g}",
        "parameters": f"{parameters:,}",
        "weights at the start": source,
    }
    auroc = [] if validation.empty else [(k, f"{v:.3f}") for k, v in validation.iloc[-1].drop("step").items()]
    context: dict[str, Any] = {
        "title": out.resolve().name,
        "finished": step >= steps,
        "figures": figures,
        "auroc": auroc,
        "auroc_step": 0 if validation.empty else int(validation.iloc[-1]["step"]),
        "plots": plots,
        "config": to_yaml(config),
        "versions": versions(),
    }
    environment = templates("carzero.train")
    page, partial = out / "summary.html", out / ".summary.partial"
    partial.write_text(environment.get_template("summary.html").render(context), encoding="utf-8")
    os.replace(partial, page)
    return page


def _plans(metrics: pd.DataFrame, validation: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[str], str]]:
    plans = [
        ("loss", metrics, ["loss"], "loss"),
        ("lr", metrics, ["lr"], "learning rate"),
        ("grad_norm", metrics, ["grad_norm"], "norm of the gradient"),
        ("images_per_s", metrics, ["images_per_s"], "images/s"),
    ]
    if not validation.empty:
        plans.append(("auroc", validation, list(validation.columns.drop("step")), "zero-shot AUROC"))
    return plans


def _plot(out: Path, name: str, table: pd.DataFrame, columns: list[str], label: str) -> str:
    """Draw columns against the step; returns the file's path inside the folder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.0), layout="constrained")
    axes = figure.subplots()
    for column in columns:
        values = table[column].to_numpy(np.float64)
        wide = max(1, len(values) // 50)
        if name == "auroc":
            axes.plot(
                table["step"], values, marker="o", markersize=3, label=column, linewidth=2 if column == "macro" else 1
            )
        else:
            axes.plot(table["step"], values, linewidth=0.6, alpha=0.4, color="tab:blue")
            smooth = pd.Series(values).rolling(wide, min_periods=1).mean()
            axes.plot(table["step"], smooth, linewidth=1.5, color="tab:blue")
    if len(columns) > 1:
        axes.legend(fontsize="x-small", ncols=2)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    path = out / "plots" / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return path.relative_to(out).as_posix()
