"""Scoring a long list of images in parts: over processes and nodes, resumable, merged with a count."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from carzero.errors import UserError
from carzero.train.ranks import Ranks, leave

if TYPE_CHECKING:
    from carzero.data.files import ImageFile
    from carzero.zeroshot.classify import ZeroShotClassifier

_PLAN = "plan.json"


def score_parts(
    classifier: ZeroShotClassifier,
    images: Sequence[ImageFile],
    folder: Path,
    *,
    weights: str,
    rank: int = 0,
    world: int = 1,
    size: int = 1024,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Score this process's parts that are not there yet; part k belongs to process ``k mod world``.

    A part is a Parquet file of its images' scores, and of its failures where there are some, renamed into place when
    complete: a kill costs the part under way. Parts of any number of processes go together.

    Args:
        images: the whole list, the same in every process.
        folder: where the parts lie; it holds those of one list, prompts and weights alone.
        weights: what the scores are of, compared with that of the parts that are there.
        size: images of a part.
        say: takes a line a part.

    Raises:
        UserError: the folder holds parts of another list, other prompts or weights, or cannot be written.
    """
    plan = _plan(classifier, images, weights, size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _agree(folder, plan)
        for k in range(rank, plan["parts"], world):
            final = _part(folder, k)
            if final.exists():
                continue
            started = time.perf_counter()
            mine = images[k * size : (k + 1) * size]
            scores = classifier.predict(mine)
            # of an attempt that was killed here
            _failures(folder, k).unlink(missing_ok=True)
            if len(classifier.failures):
                _write(classifier.failures, _failures(folder, k))
            # the scores come last: a part is there when they are
            _write(scores, final)
            seconds = time.perf_counter() - started
            say(f"part {k + 1} of {plan['parts']}: {len(mine)} images, {len(mine) / seconds:.1f} images/s")
    except OSError as error:
        raise UserError(f"The parts in {folder} cannot be written: {error.strerror or error}.") from None


def classify_parts(
    classifier: ZeroShotClassifier, images: Sequence[ImageFile], folder: Path, *, weights: str, size: int, ranks: Ranks
) -> pd.DataFrame | None:
    """`score_parts` on every rank, then `merge_parts` on the first, which gets the scores; the others get None."""
    score_parts(
        classifier, images, folder, weights=weights, size=size, rank=ranks.rank, world=ranks.world,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    # all have written their last part
    ranks.objects(None)
    leave()
    if not ranks.first:
        return None
    scores, classifier.failures = merge_parts(folder, images)
    return scores


def merge_parts(folder: Path, images: Sequence[ImageFile]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All scores in the list's order, and all failures.

    Raises:
        UserError: parts are missing, or scores and failures together are not exactly the images of the list.
    """
    plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    missing = [k for k in range(plan["parts"]) if not _part(folder, k).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {plan['parts']} parts in {folder} are missing, the first number {missing[0]}; run the "
            "same command again to score them."
        )
    scores = pd.concat([pd.read_parquet(_part(folder, k)) for k in range(plan["parts"])], ignore_index=True)
    broken = [pd.read_parquet(path) for k in range(plan["parts"]) if (path := _failures(folder, k)).exists()]
    failures = pd.concat(broken, ignore_index=True) if broken else pd.DataFrame(columns=["image", "reason"], dtype=str)
    found, want = [*scores["image"], *failures["image"]], [image.name for image in images]
    if sorted(found) != sorted(want):
        raise UserError(
            f"The parts in {folder} hold {len(found)} images and the list has {len(want)}, or other names: remove the "
            "folder and score again."
        )
    return scores, failures


def _plan(classifier: ZeroShotClassifier, images: Sequence[ImageFile], weights: str, size: int) -> dict:
    listed = hashlib.sha256("\n".join(image.name for image in images).encode()).hexdigest()
    prompts = dict(zip(classifier.prompts.classes, map(list, classifier.prompts.prompts)))
    return {
        "images": len(images), "list": listed, "size": size, "parts": -(-len(images) // size), "prompts": prompts,
        "weights": weights, "pool": classifier.pool,
    }  # fmt: skip


def _agree(folder: Path, plan: dict) -> None:
    path = folder / _PLAN
    if not path.exists():
        partial = folder / f".{_PLAN}.{os.getpid()}"
        partial.write_text(json.dumps(plan, indent=1), encoding="utf-8")
        os.replace(partial, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in plan if found.get(key) != plan[key]]
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder} holds parts of other scores: {key} was {str(found.get(key))[:80]!r} and is now "
            f"{str(plan[key])[:80]!r}. Name another folder."
        )


def _part(folder: Path, k: int) -> Path:
    return folder / f"part-{k:05d}.parquet"


def _failures(folder: Path, k: int) -> Path:
    return folder / f"part-{k:05d}.failures.parquet"


def _write(table: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    table.to_parquet(partial, index=False)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
