"""Times in turns and peak memory, on a CUDA device or, in a dry run, on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def take_turns(
    functions: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, least: float = 0.02
) -> dict[str, dict[str, float]]:
    """Median seconds of each function; the functions take turns, so that clocks and heat meet all of them alike.

    Args:
        rounds: counted turns; two calls before them warm up and tell how long one takes.
        least: seconds that a turn measures at least, by calling a fast function several times.

    Returns:
        ``{name: {"seconds": median, "spread": (slowest - fastest) / median, "calls": in a turn}}``.
    """
    calls, samples = {}, {name: [] for name in functions}  # type: ignore[var-annotated]
    for name, function in functions.items():
        function()
        once = _seconds(function, 1, device)
        calls[name] = max(1, min(1000, round(least / max(once, 1e-7))))
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(_seconds(function, calls[name], device))
    return {
        name: {
            "seconds": statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
            "calls": calls[name],
        }
        for name, values in samples.items()
    }


def _seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one call, of several in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    torch.cuda.synchronize()
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    for _ in range(calls):
        function()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3 / calls


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes allocated at the peak of a run beyond those before it; None on a CPU, whose allocator keeps no count."""
    if device.type != "cuda":
        function()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
