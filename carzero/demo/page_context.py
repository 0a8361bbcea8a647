"""What the page says: the template's blanks, filled from the figures of a demo or from somebody's own images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carzero.data.decode import ImageSource
from carzero.data.phantom import Phantom, aligned
from carzero.demo import figures, phantoms
from carzero.demo.examples import example, ranks
from carzero.demo.page import NOT_A_DEVICE, loss_curve
from carzero.demo.recipe import Recipe
from carzero.models.carzero import CARZero

#: Images shown with their maps.
SHOWN = 9

#: row of metrics.json -> its name, what it says, and the range it should lie in (None: stated whatever it is)
ROWS: dict[str, tuple[str, str, tuple[float, float] | None]] = {
    "held_out": ("Held-out radiographs", "Macro AUROC over all findings, prompt “There is <finding>”.", (0.90, 1.0)),
    "unseen_pairs": (
        "Finding and side never together",
        "Two finding-and-side pairs that training neither showed nor named together.",
        (0.80, 1.0),
    ),
    "unseen_wording": (
        "Unseen wording",
        "One wording a finding that no training text holds, made of words that training knows.",
        (0.80, 1.0),
    ),
    "pixels": (
        "Pixels alone",
        "Logistic regression on 32 x 32 grey values; unlike the others it is given labels.",
        None,
    ),
    "cosine_head": ("Cosine head", "The same encoders and steps with a cosine in place of the decoder.", None),
    "shuffled_texts": (
        "Shuffled texts",
        "The same training with texts put to images at random, in fewer steps: what must stay at chance.",
        (0.40, 0.60),
    ),
    "negated_twins": (
        "Negated twins",
        "How well “There is no <finding>” finds the images without it; below 0.5 the “no” is not read.",
        None,
    ),
}


def drawn_context(metrics: dict[str, Any], model: CARZero, held_out: list[Phantom], recipe: Recipe) -> dict[str, Any]:
    """The page of a demo on drawn radiographs."""
    prompts = phantoms.finding_prompts()
    scored = figures.score(model, held_out, prompts)
    rank = ranks(scored.logits)
    chosen = [i for i, p in enumerate(held_out) if p.findings][:SHOWN]
    shown = []
    for index in chosen:
        phantom = held_out[index]
        shown.append(
            example(
                model,
                phantom.image,
                name=f"Drawn radiograph {index + 1}",
                prompts=list(prompts.values()),
                names=list(prompts),
                logits=scored.logits[index],
                rank=rank[index],
                truth=" ".join(aligned(f) for f in phantom.findings),
                present=[bool(phantom.labels[name]) for name in prompts],
                boxes=[[f.box for f in phantom.findings if f.name == name] for name in prompts],
            )
        )
    seconds, versions = metrics["seconds"], metrics["versions"]
    pointing = [v for v in metrics["pointing"].values() if not np.isnan(v)]
    pairs = "; ".join(f"{name} {v['value']:.3f}" for name, v in metrics["unseen_pair"].items())
    return {
        "title": "carzero demo: zero-shot findings on drawn radiographs",
        "lead": (
            f"A small CARZero ({metrics['parameters'] / 1e6:.1f} M parameters) was trained from nothing in "
            f"{metrics['steps']['carzero']} steps on {metrics['train_images']} drawn radiographs and their reports, "
            f"and asked about {metrics['test_images']} it had not seen."
        ),
        "notice": {"head": "All radiographs here are drawn, none is of a person.", "body": NOT_A_DEVICE},
        "tiles": [
            {"value": f"{metrics['macro_auroc']:.3f}", "label": "macro AUROC, held out"},
            {"value": f"{metrics['rows']['pixels']['value']:.3f}", "label": "pixels alone, same split"},
            {"value": f"{np.mean(pointing):.0%}", "label": "attention peaks inside the drawn box"},
            {"value": f"{seconds['total'] / 60:.1f} min", "label": "from first drawing to figures"},
        ],
        "rows": [_row(key, metrics["rows"][key], recipe, pairs if key == "unseen_pairs" else "") for key in ROWS],
        "findings": [
            {
                "name": name,
                "positives": f["positives"],
                "count": metrics["test_images"],
                "other": f["pixels"]["value"],
                **f["carzero"],
            }
            for name, f in metrics["findings"].items()
        ],
        "findings_note": "Dot: carzero with its 95 % interval. Upright mark: pixels alone on the same split.",
        "examples": shown,
        "examples_note": (
            "Left the drawing, right the decoder's attention for one prompt, boxes where the finding was drawn. "
            "Scores are logits, not probabilities: compare images within a prompt, as the rank among "
            "the held-out images does."
        ),
        "rank_name": "above",
        "curve": loss_curve(metrics["losses"], "Sum of the InfoNCE losses of both directions; dark: running mean."),
        "speed": _speed(metrics["speed"]),
        "facts": [
            {"head": "Time", "lines": [(name, f"{value:.1f} s") for name, value in seconds.items()]},
            {
                "head": "Versions and memory",
                "lines": [*versions.items(), ("peak memory", f"{metrics['peak_memory_mib']} MiB")],
            },
        ],
        "footer": NOT_A_DEVICE,
    }


def own_context(
    model: CARZero,
    images: Sequence[tuple[str, ImageSource]],
    classes: Sequence[str],
    prompts: Sequence[str],
    logits: NDArray[np.floating],
    failures: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The page of somebody's own images.

    Args:
        images: name and image of each that was scored, in the order of `logits`.
        classes, prompts: of the columns.
        logits: ``[N, C]``.
        failures: name of each image that could not be read, and why.
    """
    rank = ranks(logits) if len(images) > 1 else None
    shown = [
        example(
            model, image, name=name, prompts=prompts, names=classes, logits=logits[i],
            rank=None if rank is None else rank[i],
        )
        for i, (name, image) in enumerate(images[: 4 * SHOWN])
    ]  # fmt: skip
    note = f"{len(shown)} of {len(images)} images. " if len(shown) < len(images) else ""
    return {
        "title": "carzero: scores and attention on your images",
        "lead": f"{len(images)} images scored against {len(classes)} prompts.",
        "notice": {"head": "These are the images you gave.", "body": NOT_A_DEVICE},
        "tiles": [],
        "rows": [],
        "findings": [],
        "findings_note": "",
        "examples": shown,
        "examples_note": note + "Scores are logits, not probabilities: compare images within a prompt.",
        "rank_name": "above",
        "curve": None,
        "speed": None,
        "facts": [{"head": "Could not be read", "lines": list(failures)}] if failures else [],
        "footer": NOT_A_DEVICE,
    }


def _row(key: str, interval: dict[str, float], recipe: Recipe, detail: str) -> dict[str, Any]:
    name, meaning, aim = ROWS[key]
    meaning += f" {detail}." if detail else ""
    row: dict[str, Any] = {"name": name, "meaning": meaning, "target": "", "met": False, "other": None, **interval}
    # the quick version trains too little for any aim
    if aim and recipe.name == "full":
        row["target"] = f"Aim {aim[0]:.2f} or more" if aim[1] == 1.0 else f"Aim {aim[0]:.2f} to {aim[1]:.2f}"
        row["met"] = aim[0] <= interval["value"] <= aim[1]
    return row


def _speed(speed: dict[str, Any]) -> dict[str, Any]:
    seconds = speed["seconds"]
    base = seconds["reference"]
    return {
        "note": (
            f"Time of the written-out reference over each, in turn in one process, {speed['shape']}; backward with "
            f"dropout 0.1. Chosen: {speed['chosen']}."
        ),
        "shape": "backend",
        "columns": list(seconds),
        "lines": [{"name": mode, "cells": [f"{base[mode] / s[mode]:.1f}x" for s in seconds.values()]} for mode in base],
    }
