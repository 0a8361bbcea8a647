"""How it is measured: turns in one process against the machine's own GEMM rate, and memory in a fresh process."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from carzero.bench.cases import COMPILED, DTYPES, Case, contenders
from carzero.ops.spec import DecoderSpec


@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest less fastest round, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


class GemmRate:
    """G, the machine's GEMM rate at this moment: best of six back-to-back F.linear calls at 4096 x 768 x 768."""

    ROWS, WIDTH, CALLS = 4096, 768, 6

    def __init__(self, dtype: torch.dtype) -> None:
        self._x = torch.randn(self.ROWS, self.WIDTH).to(dtype)
        self._w = torch.randn(self.WIDTH, self.WIDTH).to(dtype)

    def __call__(self) -> float:
        """FLOP/s."""
        best = min(seconds(lambda: F.linear(self._x, self._w)) for _ in range(self.CALLS))
        return 2 * self.ROWS * self.WIDTH * self.WIDTH / best


def seconds(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(
    functions: Mapping[str, Callable[[], object]],
    gemm: GemmRate,
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Timing], list[float]]:
    """Time each function once per round, and G at the start of each, so that a load on the machine slows all alike.

    Returns:
        Timings by name, and G of each round in FLOP/s. A first round warms up and is not counted.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    rates: list[float] = []
    for turn in range(rounds + 1):
        rate = gemm()
        if turn:
            rates.append(rate)
        for name, function in functions.items():
            progress(f"{name}, {'warm-up' if not turn else f'round {turn} of {rounds}'}")
            elapsed = seconds(function)
            if turn:
                samples[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in samples.items()}, rates


def peak_extra_bytes(case: Case, contender: str) -> int:
    """Bytes that one run needs at its peak beyond inputs, weights and results, measured in a process of its own.

    Results are the logits and, with a backward, one gradient for each input and weight. The resident set's high-water
    mark is taken: it sees torch's allocations and the native workspaces alike. Linux only.
    """
    order = json.dumps({"case": dataclasses.asdict(case), "contender": contender})
    answer = subprocess.run(
        [sys.executable, "-m", "carzero.bench.measure", order], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"measuring the memory of {contender!r} failed:\n{answer.stderr[-2000:]}")
    return int(answer.stdout.strip().splitlines()[-1])


def _peak_here(case: Case, contender: str) -> int:
    """The body of `peak_extra_bytes`; runs in a fresh process."""
    compiled = contender == COMPILED
    backends = [] if contender.startswith("published") else [contender]
    # A small run of the same kind first: thread pools, code and library buffers are the process's, not the run's.
    small = dataclasses.replace(case, memories=2, queries=4)
    contenders(small, backends, compiled=compiled)[contender]()
    function = contenders(case, backends, compiled=compiled)[contender]
    if compiled:
        # Compiling takes memory of its own, which is not the run's.
        function()
    for leaf in function.leaves:
        leaf.grad = None
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    logits = function()
    peak = _status("VmHWM")
    kept = logits.nbytes + sum(leaf.grad.nbytes for leaf in function.leaves if leaf.grad is not None)
    return max(0, peak - before - kept)


def _status(field: str) -> int:
    """Bytes of a field of this process's status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, f"no {field} in the process status"
    return int(found.group(1)) * 1024


def gemm_rate(dtype: str) -> GemmRate:
    """G for a dtype by name."""
    return GemmRate(DTYPES[dtype])


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    fields = dict(request["case"])
    fields["spec"] = DecoderSpec(**{**fields["spec"], "head_hidden": tuple(fields["spec"]["head_hidden"])})
    print(_peak_here(Case(**fields), request["contender"]))
