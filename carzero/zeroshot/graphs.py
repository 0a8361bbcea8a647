"""CUDA graphs: the kernels of one batch recorded once and launched together, without Python between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Runs `function` a few times, records it, and returns what launches the record again: ``capture(function) -> replay``.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class GraphedBatches:
    """A function of a batch, recorded for one batch size and replayed for every batch up to it.

    *Equivalent to* ``function(batch)`` for a function whose rows do not depend on each other.

    A graph replays the same kernels on the same addresses, so the batch is copied into the recorded input; a smaller
    one leaves the rows after it as they were, and their results are cut off. The function must not read a value back
    from the device.

    Args:
        function: ``[B, ...] -> [B, ...]`` on one device.
        size: B of the record; larger batches go through in pieces.
        capture: how to record; by a `torch.cuda.CUDAGraph`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], size: int, capture: Capture | None = None) -> None:
        self.function, self.size = function, size
        self._capture = capture or capture_cuda
        self._record: _Record | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """The function's results for a batch ``[B, ...]``; a fresh tensor."""
        parts = [self._run(part) for part in batch.split(self.size)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _run(self, part: Tensor) -> Tensor:
        record = self._record
        if record is None or record.input.shape[1:] != part.shape[1:] or record.input.dtype != part.dtype:
            static = part.new_zeros((self.size, *part.shape[1:]))
            record = self._record = _Record(static, *self._capture(lambda: self.function(static)))
        record.input[: len(part)].copy_(part)
        record.replay()
        return record.output[: len(part)].clone()


class _Record(NamedTuple):
    input: Tensor
    replay: Callable[[], None]
    output: Tensor


def capture_cuda(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record what `function` launches; see https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""
    # lazy initialisations (cuBLAS handles, autotuning, cached weights) must not fall into the record
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return graph.replay, output


def choose_graph(device: torch.device, backend: str) -> tuple[bool, str]:
    """Whether batches go through a CUDA graph, and why."""
    if device.type != "cuda":
        return False, f"CUDA graphs are for CUDA devices, not for {device.type}"
    if backend == "reference":
        return False, "the reference reads values back from the device"
    return True, "batches of one size need no value back from the GPU"
