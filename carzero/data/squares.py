"""Prepared images kept for the next pass: resized, padded squares, in memory or in a file, shared by processes."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carzero.data.images import ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SquareCache:
    """Squares of a list of images, each read once by whichever process needs it first.

    Equivalent to ``processor.square(images[index])[0]`` each time. Forked processes share the squares: in memory by
    an anonymous map that they inherit, or by a file whose pages the system keeps. A square counts only once it is
    whole, so a process that is killed leaves none that is half written.

    Args:
        images: paths.
        processor: makes the squares.
        folder: where the file lies, for other runs with the same images, sizes and times of change; None is memory.

    Raises:
        UserError: the folder cannot be written, or its disk has not the room.
    """

    def __init__(self, images: Sequence[str], processor: ImageProcessor, folder: str | Path | None = None) -> None:
        self.images, self.processor = images, processor
        count, side = len(images), processor.side
        if folder is None:
            # anonymous maps are shared with forked processes, and take memory only where they are written
            self._squares = np.frombuffer(mmap.mmap(-1, max(1, count * side * side)), np.uint8)
            self._done = np.frombuffer(mmap.mmap(-1, max(1, count)), np.uint8)
            self.where = "memory"
        else:
            base = Path(folder) / f"squares-{_key(images, processor)}"
            self._squares = _mapped(base.with_suffix(".u8"), count * side * side)
            self._done = _mapped(base.with_suffix(".done"), count)
            self.where = str(base.with_suffix(".u8"))
        self._squares = self._squares[: count * side * side].reshape(count, side, side)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """uint8 ``[side, side]`` of an image."""
        if not self._done[index]:
            self._squares[index] = self.processor.square(self.images[index])[0]
            self._done[index] = 1
        return self._squares[index]

    @property
    def held(self) -> int:
        """How many images are there already."""
        return int(np.count_nonzero(self._done[: len(self.images)]))


def _key(images: Sequence[str], processor: ImageProcessor) -> str:
    digest = hashlib.sha256(f"{processor.side} {processor.bits}".encode())
    for path in images:
        stat = os.stat(path)
        digest.update(f"\n{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _mapped(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() != size:
                file.truncate(size)
                # room is taken now: a full disk would end the process by a signal at some later write
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if path.exists():
            path.unlink()
        raise UserError(
            f"train: cache_folder {path.parent} cannot take {size / 2**20:.0f} MiB of prepared images: "
            f"{error.strerror}."
        ) from None
    return np.memmap(path, np.uint8, "r+", shape=(max(1, size),)) if size else np.zeros(1, np.uint8)
