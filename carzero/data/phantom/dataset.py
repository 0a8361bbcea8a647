"""Sets of phantoms: training and held-out parts, and files that `carzero train` and `carzero classify` read."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from carzero.data.phantom.draw import Phantom, draw, planned
from carzero.data.phantom.findings import FINDINGS, Finding
from carzero.errors import UserError

# Held-out phantoms are numbered from here, so they stay the same patients however many are trained on.
FIRST_TEST_INDEX = 10_000_000
Pair = tuple[str, str]


@dataclass(frozen=True)
class PhantomSet:
    """Phantoms by number, drawn when they are asked for.

    Args:
        name: "train" or "test".
        first: index of the first phantom.
        length: how many.
        seed, size: as in `draw`.
        held_out_pairs: (finding, side) pairs that do not occur: such a finding is drawn on the other side.
    """

    name: str
    first: int
    length: int
    seed: int = 0
    size: int = 128
    held_out_pairs: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Phantom:
        if not -self.length <= number < self.length:
            raise IndexError(f"PhantomSet: number {number} is outside 0..{self.length - 1}.")
        index = self.first + number % self.length
        return draw(index, seed=self.seed, size=self.size, findings=self.findings(number))

    def __iter__(self) -> Iterator[Phantom]:
        return (self[i] for i in range(self.length))

    def findings(self, number: int) -> tuple[Finding, ...]:
        """What phantom `number` has, without drawing it."""
        return tuple(self._allowed(f) for f in planned(self.first + number % self.length, seed=self.seed))

    def _allowed(self, finding: Finding) -> Finding:
        banned = [side for name, side in self.held_out_pairs if name == finding.name]
        if not any(side in banned for side in finding.sides):
            return finding
        return replace(finding, side="left" if "right" in banned else "right")


def split(
    n_train: int, n_test: int, *, seed: int = 0, size: int = 128, held_out_pairs: Iterable[Pair] = ()
) -> tuple[PhantomSet, PhantomSet]:
    """A training set and a held-out set of different patients.

    Args:
        n_train, n_test: how many phantoms.
        seed, size: as in `draw`.
        held_out_pairs: (finding, side) pairs, such as ("nodule", "left"), that training never shows: there the finding
            lies on the other side instead, so its share of the images stays. The held-out set shows all pairs.
    Returns:
        (train, test), drawn when read.
    Raises:
        UserError: a pair is not one of a sided finding and "left" or "right", or both sides of a finding are held out.
    """
    pairs = tuple(held_out_pairs)
    for name, side in pairs:
        if name not in FINDINGS or not FINDINGS[name].sided or side not in ("left", "right"):
            known = ", ".join(n for n, kind in FINDINGS.items() if kind.sided)
            raise UserError(f"split: cannot hold out {(name, side)!r}: name one of {known}, and left or right.")
        if (name, "left" if side == "right" else "right") in pairs:
            raise UserError(f"split: both sides of {name} are held out; training must show it on one side.")
    train = PhantomSet("train", 0, n_train, seed, size, pairs)
    return train, PhantomSet("test", FIRST_TEST_INDEX, n_test, seed, size)


def label_column(key: str | Pair) -> str:
    """Name of a label's column: the finding, or finding and side joined by a comma and a space."""
    return key if isinstance(key, str) else ", ".join(key)


def write_dataset(folder: str | Path, phantoms: Iterable[Phantom], *, split: str = "train") -> tuple[Path, Path]:
    """Write PNG files, a manifest for `carzero train`, the labels, and the boxes for `carzero explain`.

    Args:
        folder: made if it is not there; PNGs go to `images/`.
        phantoms: what to write.
        split: value of the manifest's column of that name; also names the tables.
    Returns:
        (manifest, labels): `<split>.csv` with the columns image (path relative to the folder), text (report, then the
        canonical sentences it lacks), patient and split; `<split>_labels.csv` with the column image and one 0/1 column
        per finding and per finding and side. Beside them `<split>_boxes.csv`: image, finding and x0, y0, x1, y1 in
        pixels, a row a box.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest, table = folder / f"{split}.csv", folder / f"{split}_labels.csv"
    with contextlib.ExitStack() as files:
        rows, labels, boxes = (
            csv.writer(files.enter_context(path.open("w", newline="", encoding="utf-8")))
            for path in (manifest, table, folder / f"{split}_boxes.csv")
        )
        rows.writerow(("image", "text", "patient", "split"))
        boxes.writerow(("image", "finding", "x0", "y0", "x1", "y1"))
        for number, phantom in enumerate(phantoms):
            name = f"images/{split}_{phantom.seed}_{phantom.index:08d}.png"
            if not cv2.imwrite(str(folder / name), phantom.image):
                raise UserError(f"write_dataset: cannot write {folder / name}; is the disk full?")
            if number == 0:
                labels.writerow(("image", *map(label_column, phantom.labels)))
            sentences = dict.fromkeys((*phantom.report, *phantom.aligned))
            rows.writerow((name, " ".join(sentences), f"{phantom.seed}-{phantom.index}", split))
            labels.writerow((name, *phantom.labels.values()))
            boxes.writerows((name, finding.name, *finding.box) for finding in phantom.findings)
    return manifest, table
