"""Images read and prepared ahead of the model, in worker processes; one that fails does not stop the others."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset

from carzero.data.decode import ImageError
from carzero.data.workers import forkable_opencv, start_reader
from carzero.errors import UserError
from carzero.zeroshot.guard import FrontalGuard, Verdict

if TYPE_CHECKING:
    from carzero.data.decode import ImageSource
    from carzero.data.images import ImageProcessor


@dataclass(frozen=True)
class ReadBatch:
    """The images of one batch that could be read, and why the others could not.

    Args:
        indices: positions of the read images in the whole list, in order.
        pixels: float32 [len(indices), 3, size, size].
        verdicts: of the guard, one for each of `indices`.
        failures: position -> reason.
        warnings: sentences about images that were read but look odd.
    """

    indices: list[int]
    pixels: torch.Tensor
    verdicts: list[Verdict] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose_workers(images: int) -> tuple[int, str]:
    """How many processes read images, and why."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if images < 32:
        return 0, f"{images} images are read faster than processes start"
    workers = max(1, min(8, cores // 2))
    return workers, f"half of {cores} cores, at most 8; the others run the model"


def read_batches(
    images: Sequence[ImageSource], processor: ImageProcessor, *, batch_size: int, workers: int, pin: bool = False
) -> Iterator[ReadBatch]:
    """All images in order, batch by batch.

    Args:
        images: paths, PIL images or arrays.
        processor: makes pixels of them.
        batch_size: images tried at a time; failed ones make a batch smaller.
        workers: processes that read ahead; 0 reads in this one.
        pin: put pixels into pinned memory, for a copy to the GPU.
    Raises:
        UserError: a worker process died (a decoder crashed, or the memory ran out).
    """
    loader = DataLoader(
        _Images(images, processor),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=start_reader if workers else None,
    )
    done = 0
    try:
        with forkable_opencv():
            batches = iter(loader)
        for batch in batches:
            done += len(batch.indices) + len(batch.failures)
            yield dataclasses.replace(batch, pixels=batch.pixels.pin_memory()) if pin else batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"A process that reads images died after {done} of {len(images)} images: a decoder crashed on a damaged "
            "file, or the memory ran out. Fewer --workers need less memory; --workers 0 reads in the main process."
        ) from None


@dataclass(frozen=True)
class _Read:
    index: int
    pixels: torch.Tensor | None
    verdict: Verdict | None
    reason: str
    warnings: list[str]


class _Images(Dataset[_Read]):
    def __init__(self, images: Sequence[ImageSource], processor: ImageProcessor) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Read:
        pixels, verdict, reason = None, None, ""
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            try:
                grey = self.processor.read(self.images[index])
                pixels = self.processor.prepare(grey)
            except ImageError as error:
                reason = error.reason
            except Exception as error:
                # One image must not end a run of thousands; the kind of error is kept, its text may quote a header.
                reason = f"cannot be read ({type(error).__name__})"
        if pixels is not None:
            verdict = FrontalGuard.load()(grey)
        return _Read(index, pixels, verdict, reason, [str(w.message) for w in heard if w.category is UserWarning])


def _collate(items: list[_Read]) -> ReadBatch:
    read = [(item.index, item.pixels) for item in items if item.pixels is not None]
    return ReadBatch(
        [index for index, _ in read],
        torch.stack([pixels for _, pixels in read]) if read else torch.empty(0),
        [item.verdict for item in items if item.verdict is not None],
        {item.index: item.reason for item in items if item.pixels is None},
        [sentence for item in items for sentence in item.warnings],
    )
