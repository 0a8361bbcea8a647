"""Starting processes that read images, from a process that may have used OpenCV itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import cv2


@contextlib.contextmanager
def forkable_opencv() -> Iterator[None]:
    """Start reading processes inside this: ``with forkable_opencv(): batches = iter(loader)``.

    OpenCV keeps a pool of threads once it has worked in parallel. A forked child inherits the pool without its threads
    and waits for them for ever at its first parallel call. Inside this context the pool is gone and children work
    with one thread, which is what a process a core should do anyway; the parent's number of threads comes back after.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def start_reader(_: int) -> None:
    """A reading process's first act (``worker_init_fn``): leave Ctrl-C to the main process, which ends its readers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
