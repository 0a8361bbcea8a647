"""Checkpoints of a run: all that is needed to go on to the same losses, written so that no crash leaves half of one.

::

    OUT/checkpoints/step-000500/
        model/        what `carzero.load` opens
        state.pt      step, optimizer, loss scaler, random generators, settings, commit: tensors, numbers, text only
        files.json    size and SHA-256 of each of those files

A folder is written under another name, flushed to the disk and renamed, so one that is called ``step-*`` was whole
when it was written. Whether it still is, is checked when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.train.ranks import Ranks

_STATE, _LIST = "state.pt", "files.json"


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run that were written to their end, oldest first."""
    found = [p for p in (out / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def save_checkpoint(
    out: Path, model: CARZero | None, state: dict[str, Any] | None, step: int, ranks: Ranks, *, keep: int = 3
) -> Path:
    """Write ``OUT/checkpoints/step-N`` atomically and remove all but the newest `keep`.

    Where the disk is full, the oldest checkpoints but one make room and it is tried once more.

    Args:
        model: to save, on the first rank; None on the others.
        state: to save beside it, on the first rank.
        step: optimizer steps done.
        ranks: all of them call; the first writes, and all of them raise what it raises.
        keep: how many stay, this one included.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be written; those before it are whole.
    """
    folder = out / "checkpoints"
    final = folder / f"step-{step:06d}"
    problem = None
    if ranks.first and not final.exists():
        assert model is not None
        assert state is not None
        whole, kept = {**state, "step": step}, model

        def fill(partial: Path) -> None:
            kept.save_pretrained(partial / "model")
            torch.save(whole, partial / _STATE)

        problem = _written(final, fill)
        if problem is not None and len(checkpoints(out)) > 1:
            _keep_newest(out, 1)
            problem = _written(final, fill)
        if problem is None:
            _keep_newest(out, keep)
    problem = ranks.objects(problem)[0]
    if problem is not None:
        kept_ones = checkpoints(out)
        newest = f"the newest whole one is {kept_ones[-1]}" if kept_ones else "there is none before it"
        raise UserError(
            f"train: the checkpoint {final} cannot be written ({problem}); {newest}. Make room and go on with "
            "--resume auto."
        )
    return final


def newest_whole(out: Path, ranks: Ranks, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; damaged ones are set aside and named.

    Args:
        ranks: all of them call; the first reads the files.
        say: takes a sentence for each damaged one.

    Returns:
        Its folder, or None where none was written yet.

    Raises:
        UserError: there were some, and all are damaged.
    """
    found: Path | None = None
    damaged = 0
    if ranks.first:
        for partial in (out / "checkpoints").glob(".step-*.partial"):
            shutil.rmtree(partial)
        for folder in reversed(checkpoints(out)):
            problem = _damage(folder)
            if problem is None:
                found = folder
                break
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            say(f"train: {folder.name} is damaged ({problem}) and was set aside as {aside.name}.")
            damaged += 1
    found, damaged = ranks.objects((found, damaged))[0]
    if found is None and damaged:
        raise UserError(
            f"train: all {damaged} checkpoints in {out / 'checkpoints'} are damaged, so the run cannot go on; start it "
            "anew in another --out."
        )
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU; no pickled code is run."""
    return torch.load(folder / _STATE, map_location="cpu", weights_only=True)


def random_states() -> dict[str, Any]:
    """The generators that the encoders' dropout draws from."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random(states: list[dict[str, Any]], ranks: Ranks) -> None:
    """Put this rank's generators back as they were.

    Raises:
        UserError: the run had another number of processes, each with generators of its own.
    """
    if len(states) != ranks.world:
        raise UserError(
            f"train: the run had {len(states)} processes and is resumed with {ranks.world}; the encoders' "
            "dropout could not go on as it was. Resume with as many."
        )
    random = states[ranks.rank]
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available() and random["cuda"]:
        torch.cuda.set_rng_state_all(random["cuda"])


def replace_folder(partial: Path, final: Path) -> None:
    """Put a completely written folder in the place of another; a crash leaves the old one, or the new one beside it."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _written(final: Path, fill: Callable[[Path], None]) -> str | None:
    """Write a folder and rename it into place; returns why that failed, with nothing of it left."""
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        listed = {str(p.relative_to(partial)): _fingerprint(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        (partial / _LIST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            _flush(path)
        os.replace(partial, final)
        _flush(final.parent)
    # torch and safetensors say in errors of their own that a disk is full
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        return getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def _keep_newest(out: Path, keep: int) -> None:
    for old in checkpoints(out)[:-keep]:
        # renamed first: what is being removed is no checkpoint any more
        going = old.with_name(f".{old.name}.partial")
        os.replace(old, going)
        shutil.rmtree(going)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words."""
    try:
        listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))
        for name, want in listed.items():
            size = (folder / name).stat().st_size
            if size != want["bytes"]:
                return f"{name} has {size} bytes of {want['bytes']}"
            if _fingerprint(folder / name) != want:
                return f"the bytes of {name} are not those that were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
