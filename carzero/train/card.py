"""What a run records that others ask of its model: facts for the card that `CARZero.push_to_hub` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from carzero.data.dataset import read_table, select_rows
from carzero.data.shards import PAIRS
from carzero.errors import UserError
from carzero.models.hub import CardFacts

# settings of a run that a reader of its card asks for
_SETTINGS = (
    "init", "epochs", "steps", "batch_size", "optimizer", "learning_rate", "weight_decay", "text", "positives",
    "augment", "flip", "seed",
)  # fmt: skip


def card_facts(run: str | Path, *, report: str | Path | None = None, **given: Any) -> CardFacts:
    """What a run of ``carzero train`` and a report of ``carzero evaluate`` record.

    Args:
        run: the run's folder: ``config.yaml``, and ``validation.csv`` where no report is given. The manifest is
            read once more where it still lies where the run read it; of its path only the last part is kept.
        report: folder with the report's ``metrics.json``.
        given: fields of `CardFacts` to set otherwise.

    Raises:
        UserError: there is no run or report, or it cannot be read.
    """
    path = Path(run) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        manifest, split = Path(config["manifest"]), config.get("split")
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(f"card_facts: {run} is no folder of a run: {path} cannot be read ({error}).") from error
    facts: dict[str, Any] = {
        "training_data": f"the {'shards' if manifest.is_dir() else 'table'} {manifest.name}",
        # the table as it is now, which a run does not keep
        "split": split_identity(manifest, split) if manifest.exists() else None,
        "settings": _settings(config),
    }
    facts |= _validated(Path(run)) if report is None else _reported(Path(report))
    return CardFacts(**{**facts, **given})


def split_identity(manifest: str | Path, split: str | None = None) -> str:
    """How many rows a manifest's split has, and a digest of their images: equal for equal lists, whatever the order.

    Equal to SHA-256 of the sorted column `image` (file names, not paths), a line each. The manifest may be a folder of
    shards.

    Raises:
        UserError: the table cannot be read, or has no column image or no row of the split.
    """
    path = Path(manifest)
    path = path / PAIRS if path.is_dir() else path
    table = read_table(path)
    if "image" not in table:
        raise UserError(f"split_identity: {path} has no column image.")
    names = sorted(Path(image).name for image in select_rows(table, path, split, ("image",))["image"])
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    return f"{len(names):,} rows{'' if split is None else f' of split {split!r}'}; SHA-256 of the sorted names {digest}"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its card lists; where steps are given, epochs were not read."""
    found = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    found["init"] = _start(config.get("init") or {})
    if "steps" in found:
        found.pop("epochs", None)
    return found


def _start(init: Mapping[str, str | None]) -> str:
    """What a run started from, without the folders of the machine it ran on."""
    named = [f"{part} {source if _is_id(source) else Path(source).name}" for part, source in init.items() if source]
    return " and ".join(named) or "random weights"


def _is_id(source: str) -> bool:
    return not source.startswith("/") and source.count("/") <= 1 and not Path(source).exists()


def _validated(run: Path) -> dict[str, Any]:
    path = run / "validation.csv"
    if not path.is_file():
        return {}
    last = pd.read_csv(path).iloc[-1]
    figures = {f"zero-shot AUROC, {name}": f"{value:.3f}" for name, value in last.drop("step").items()}
    return {"figures": figures, "measured_on": f"the run's own validation set, at step {int(last['step']):,}"}


def _reported(report: Path) -> dict[str, Any]:
    path = report / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        means = {name: (found[name], found[f"{name}_ci"]) for name in found if f"{name}_ci" in found}
        level = found["intervals"]["level"]
        images, patients, title = found["n_images"], found["n_patients"], found["title"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"card_facts: {report} is no report of carzero evaluate: {path} ({error}).") from error
    figures = {
        name.replace("_", " "): f"{value:.3f} ({low:.3f} to {high:.3f})" if low is not None else f"{value:.3f}"
        for name, (value, (low, high)) in means.items()
        if value is not None
    }
    of = "patients not named" if patients is None else f"{patients:,} patients"
    return {"figures": figures, "measured_on": f"{title}: {images:,} images, {of}; brackets are {level:.0%} intervals"}
