"""The demo's radiographs: which are drawn, what is said about them, and which prompts ask for what."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carzero.data.phantom import FINDINGS, Phantom, PhantomSet, held_out, label_column, split, write_dataset
from carzero.data.phantom.reports import ALL_NORMAL, NOUNS, SIDED, WORDINGS, sentence

#: Finding and side that training never shows and never says together; each word occurs with others. Both findings look
#: alike on either side: a pneumothorax, whose pleural line is mirrored, would be another shape that was never seen.
UNSEEN_PAIRS = (("pacemaker", "left"), ("nodule", "right"))


def plan(n_train: int, n_test: int, *, seed: int, size: int) -> tuple[PhantomSet, PhantomSet]:
    """The training and the held-out set; only the held-out one shows `UNSEEN_PAIRS`."""
    return split(n_train, n_test, seed=seed, size=size, held_out_pairs=UNSEEN_PAIRS)


def draw_all(
    phantoms: PhantomSet, *, processes: int | None = None, progress: Callable[[int], None] | None = None
) -> list[Phantom]:
    """Draw a set on all cores; the drawings do not depend on how many."""
    processes = processes or os.cpu_count() or 1
    if processes == 1 or len(phantoms) < 64:
        return list(_counted(iter(phantoms), progress))
    # a fresh interpreter: a forked one would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(_counted(pool.map(phantoms.__getitem__, range(len(phantoms)), chunksize=32), progress))


def _counted(items: Iterator[Phantom], progress: Callable[[int], None] | None) -> Iterator[Phantom]:
    for number, item in enumerate(items, 1):
        if progress:
            progress(number)
        yield item


def statements(phantom: Phantom) -> tuple[str, ...]:
    """Every sentence that is true of the phantom in the wordings of training reports, and a denial of all it lacks.

    A batch then knows which of its texts are true of which images: a sentence that is true but missing here would be
    taught as false. Severity is left unsaid: with it each sentence is true of fewer images, and the same steps teach
    less.
    """
    said: list[str] = []
    for finding in phantom.findings:
        for wording, noun in itertools.product(WORDINGS[finding.name], NOUNS[finding.name]):
            # "in the ... lung" and the like need their side
            open_side = [None] if wording in SIDED or not finding.sides else []
            sides = dict.fromkeys((*finding.sides, finding.side, *open_side))
            said += [sentence(wording, noun, side) for side in sides]
    said += [sentence("there is no {noun}", name) for name in FINDINGS if not phantom.labels[name]]
    if not phantom.findings:
        said += [sentence(wording, "") for wording in ALL_NORMAL]
    return tuple(dict.fromkeys(said))


def write_pairs(folder: Path, phantoms: list[Phantom], name: str) -> Path:
    """Write images, labels and the manifest whose texts are the `statements`; returns the manifest."""
    told = (dataclasses.replace(p, report=(), aligned=statements(p)) for p in phantoms)
    return write_dataset(folder, told, split=name)[0]


def label_matrix(phantoms: list[Phantom], keys: list) -> NDArray[np.bool_]:
    """Bool ``[N, len(keys)]``; a key is a finding or a (finding, side) pair."""
    return np.array([[p.labels[k] for k in keys] for p in phantoms], dtype=bool).reshape(len(phantoms), len(keys))


def finding_prompts() -> dict[str, str]:
    """``There is <finding>`` for each finding."""
    return {name: f"There is {name}" for name in FINDINGS}


def negated_prompts() -> dict[str, str]:
    """``There is no <finding>`` for each finding."""
    return {name: f"There is no {name}" for name in FINDINGS}


def pair_prompts() -> dict[tuple[str, str], str]:
    """``There is <side> <finding>`` for each finding that has sides."""
    sided = (n for n, kind in FINDINGS.items() if kind.sided)
    return {(n, side): f"There is {side} {n}" for n in sided for side in ("left", "right")}


def reworded_prompts() -> dict[tuple[str, str] | str, str]:
    """The wording of each finding (and side) that no training report holds, though it knows every word of it."""
    keys: list = [key for key in pair_prompts() if key not in UNSEEN_PAIRS]
    keys += [n for n, kind in FINDINGS.items() if not kind.sided]
    return {key: held_out(*((key,) if isinstance(key, str) else key)) for key in keys}


__all__ = [
    "UNSEEN_PAIRS", "draw_all", "finding_prompts", "label_column", "label_matrix", "negated_prompts", "pair_prompts",
    "plan", "reworded_prompts", "statements", "write_pairs",
]  # fmt: skip
