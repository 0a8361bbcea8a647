"""What a run leaves in its folder beside checkpoints and tables: its settings, its versions, its model."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import carzero
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.train.checkpoint import replace_folder
from carzero.train.config import TrainConfig
from carzero.train.options import to_yaml

#: Settings that do not change what a run computes, so that it may be resumed with others.
FREE = {
    "out", "manifest", "workers", "log_every", "checkpoint_every", "keep", "device", "backend", "cache",
    "cache_folder", "micro_batch", "validation", "trackers", "sharding", "compile",
}  # fmt: skip


def write_config(out: Path, config: TrainConfig) -> str:
    """Write ``config.yaml``; returns what it holds."""
    text = to_yaml(config)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / ".config.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, out / "config.yaml")
    return text


def write_model(model: CARZero, out: Path) -> None:
    """Write ``model/``, which `carzero.load` opens, in the place of an older one."""
    partial = out / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    replace_folder(partial, out / "model")


def same_run(state: dict[str, Any], config: TrainConfig, fingerprint: str) -> None:
    """Raise where a run would be resumed with another course; other paths, workers or logging are fine.

    Args:
        state: of the checkpoint.
        fingerprint: of the pairs that the run would go on with.
    """
    before = state["config"]
    if state["pairs"] != fingerprint:
        raise UserError(
            f"train: --resume goes on with the pairs of the first run ({before['manifest']}), but those of "
            f"{config.manifest} are others, or lie in other shards."
        )
    changed = {k: (before.get(k), v) for k, v in config.as_dict().items() if k not in FREE and before.get(k) != v}
    if changed:
        listed = "; ".join(f"{k} was {a!r} and is now {b!r}" for k, (a, b) in changed.items())
        raise UserError(f"train: --resume goes on with the settings of the first run, but {listed}.")


def versions() -> dict[str, str]:
    """What runs: versions, and the commit where the package lies in a git checkout."""
    root = Path(carzero.__file__).resolve().parents[1]
    commit = ""
    if (root / ".git").exists() and shutil.which("git"):
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = done.stdout.strip()
    return {
        "carzero": carzero.__version__,
        "commit": commit or "none: not a git checkout",
        # a plain string: torch has a class of its own for it
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
