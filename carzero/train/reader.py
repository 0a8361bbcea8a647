"""Batches in order, read ahead by processes; one that dies is replaced, for a batch depends on its step alone."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from carzero.data.workers import forkable_opencv, start_reader
from carzero.errors import UserError
from carzero.train.batches import Batch, PairStream


class _Steps(Dataset):
    """A step's batch, or the sentence that says why it cannot be read: that crosses processes as it is."""

    def __init__(self, stream: PairStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> Batch | str:
        try:
            return self.stream[step]
        except UserError as error:
            return str(error)


class Reader:
    """The batches of the steps first .. last-1.

    Args:
        stream: what to read.
        first, last: steps.
        workers: processes that read ahead; 0 reads in this one.
        pin: put views into pinned memory.
    """

    def __init__(self, stream: PairStream, first: int, last: int, workers: int, *, pin: bool = False) -> None:
        self.stream, self.step, self.last, self.workers, self.pin = stream, first, last, workers, pin
        self._failed_at: int | None = None
        self._batches = self._start()

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.last:
            yield self.next()

    def next(self) -> Batch:
        """The next step's batch.

        Where a reading process died, one that reads a batch at a time goes over the steps that were being read, so that
        the one that ends it is known: a machine short of memory goes on, a file that crashes its decoder does not.

        Raises:
            UserError: an image cannot be read, or processes died twice at the same batch.
        """
        while True:
            try:
                batch = next(self._batches, None)
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                if not self.workers or not _of_a_dead_process(error):
                    raise
                if self._failed_at == self.step:
                    raise UserError(self._sentence()) from None
                self._failed_at = self.step
                print(
                    f"train: a process that reads images died before step {self.step + 1}; new ones are started.",
                    file=sys.stderr,
                )
                self._batches = self._start(careful=True)
                continue
            if batch is None:
                self._batches = self._start()
                continue
            if isinstance(batch, str):
                raise UserError(f"train: step {self.step + 1} cannot be read. {batch}")
            self.step += 1
            return batch

    def close(self) -> None:
        """End the reading processes."""
        self._batches = iter(())

    def _start(self, *, careful: bool = False) -> Iterator[Batch | str]:
        steps = _Steps(self.stream)
        if not self.workers:
            return (steps[step] for step in range(self.step, self.last))
        # as many as the processes had in hand
        last = min(self.last, self.step + 2 * self.workers + 1) if careful else self.last
        # a generator of its own: the loader draws a seed, and the run's belongs to the encoders' dropout
        loader = DataLoader(
            steps, sampler=list(range(self.step, last)), batch_size=None, num_workers=1 if careful else self.workers,
            prefetch_factor=1 if careful else 2, worker_init_fn=start_reader, pin_memory=self.pin,
            generator=torch.Generator(),
        )  # fmt: skip
        # the workers are forked here
        with forkable_opencv():
            batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread is when a worker dies, amid an optimizer step as well;
            # without it the death is found when the next batch is waited for
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def _sentence(self) -> str:
        paths = self.stream.image_paths(self.step)
        return (
            f"train: processes that read images died twice at step {self.step + 1}: a decoder crashed on a damaged "
            f"file or the memory ran out. The step reads {len(paths)} images, the first {paths[0]}; "
            "`carzero data check` finds files that cannot be read, fewer workers need less memory."
        )


def _of_a_dead_process(error: Exception) -> bool:
    """Whether a loader's error says that a reading process ended, and not what it raised while it read.

    A process that ends while it hands over a batch leaves an error of the pipe between the two.
    """
    if str(error).startswith("Caught "):
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
