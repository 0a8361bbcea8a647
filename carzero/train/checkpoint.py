"""Checkpoints of a run: all that is needed to go on to the same losses, written so that no crash leaves half of one.

::

    OUT/checkpoints/step-000500/
        model/      what `carzero.load` opens
        state.pt    step, optimizer, random generators: tensors, numbers and text only

A folder is written under another name and renamed when complete, so one that is called ``step-*`` is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.train.ranks import Ranks

KEEP = 2


def save_checkpoint(
    out: Path, model: CARZero, optimizer: torch.optim.Optimizer, step: int, config: dict, ranks: Ranks | None = None
) -> Path:
    """Write ``OUT/checkpoints/step-N`` atomically and remove all but the newest two.

    Args:
        step: optimizer steps done.
        config: `TrainConfig.as_dict` of the run, compared on resume.
        ranks: all of them call; the first writes, with every rank's random generators.

    Returns:
        The folder.
    """
    ranks = ranks or Ranks()
    random = ranks.objects({"cpu": torch.get_rng_state(), "cuda": _cuda_states()})
    folder = out / "checkpoints"
    final, partial = folder / f"step-{step:06d}", folder / f".step-{step:06d}.partial"
    if final.exists() or not ranks.first:
        return final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial / "model")
    state: dict[str, Any] = {
        "step": step,
        "config": config,
        "optimizer": optimizer.state_dict(),
        "random": random,
    }
    torch.save(state, partial / "state.pt")
    for path in partial.rglob("*"):
        _flush(path)
    os.replace(partial, final)
    _flush(folder)
    for old in checkpoints(out)[:-KEEP]:
        shutil.rmtree(old)
    return final


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def read_state(out: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint's model folder and state; no pickled code is run.

    Raises:
        UserError: there is none, or its state file is damaged.
    """
    found = checkpoints(out)
    if not found:
        raise UserError(f"train: there is no checkpoint to resume in {out / 'checkpoints'}; start without --resume.")
    path = found[-1] / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"train: cannot read {path} ({type(error).__name__}); remove {found[-1]} to resume from an earlier one."
        ) from error
    return found[-1] / "model", state


def restore(state: dict[str, Any], optimizer: torch.optim.Optimizer, ranks: Ranks | None = None) -> int:
    """Put optimizer and random generators back as they were; returns the steps done.

    Raises:
        UserError: the run had another number of processes, each with generators of its own.
    """
    ranks = ranks or Ranks()
    if len(state["random"]) != ranks.world:
        raise UserError(
            f"train: the run had {len(state['random'])} processes and is resumed with {ranks.world}; the encoders' "
            "dropout could not go on as it was. Resume with as many."
        )
    random = state["random"][ranks.rank]
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and random["cuda"]:
        torch.cuda.set_rng_state_all(random["cuda"])
    return int(state["step"])


def replace_folder(partial: Path, final: Path) -> None:
    """Put a completely written folder in the place of another; a crash leaves the old one, or the new one beside it."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
