"""`pair_logits` beside the published decoder: each round times G, the baseline and the contender in turn."""

from __future__ import annotations

import dataclasses
import os
import statistics

import pytest
import torch

from carzero.bench.cases import COMPILED, DTYPES, Case, contenders, cpu_backends, flops
from carzero.bench.measure import GemmRate, peak_extra_bytes, seconds

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
#: Relative L2 difference allowed between a contender's logits and the baseline's, at the measured shape: float32
#: sums of 768-1024 products in another order; bfloat16 (8 bits of mantissa) through four layers on either side.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}

CASES = [
    Case(kind=kind, mode=mode, dtype=dtype)
    for kind in ("images", "texts")
    for mode in ("forward", "forward+backward")
    for dtype in ("float32", "bfloat16")
]
CONTENDERS = ["published", COMPILED, *cpu_backends()]


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}-{c.mode}-{c.dtype}")
def test_pair_logits(benchmark, case: Case, contender: str) -> None:
    compiled = contender == COMPILED
    backends = [contender] if not contender.startswith("published") else []
    functions = contenders(case, backends, compiled=compiled)
    run, baseline = functions[contender], functions["published"]
    if case.mode == "forward":
        ours, theirs = run().float(), baseline().float()
        assert torch.linalg.norm(ours - theirs) <= AGREEMENT[case.dtype] * torch.linalg.norm(theirs)
    gemm = GemmRate(DTYPES[case.dtype])
    rates: list[float] = []
    baselines: list[float] = []

    def turn() -> None:
        rates.append(gemm())
        # the baseline's own row needs no second run of itself
        if contender != "published":
            baselines.append(seconds(baseline))

    benchmark.group = f"{case.kind}, {case.mode}, {case.dtype}"
    benchmark.pedantic(run, setup=turn, rounds=ROUNDS, warmup_rounds=1)
    own = benchmark.stats.stats.data
    # the first turn belongs to the warm-up
    rates, baselines = rates[-ROUNDS:], baselines[-ROUNDS:] or own
    rate = statistics.median(rates)
    median = statistics.median(own)
    benchmark.extra_info.update(
        {
            **{k: v for k, v in dataclasses.asdict(case).items() if k != "spec"},
            "shape": case.shape,
            "contender": contender,
            "flops": flops(case),
            "gemm_flops_per_s": rate,
            "share_of_gemm_rate": flops(case) / median / rate,
            "times_faster": statistics.median(b / o for b, o in zip(baselines, own)),
            "peak_extra_bytes": peak_extra_bytes(case, contender),
        }
    )


@pytest.mark.parametrize("memories", [32, 128])
@pytest.mark.parametrize("contender", ["published", *cpu_backends()])
def test_memory_of_a_training_step(benchmark, contender: str, memories: int) -> None:
    """Peak extra bytes of a step at Q = 128: `published` grows with M, ours does not."""
    case = Case(mode="forward+backward", dtype="bfloat16", memories=memories)
    function = contenders(case, [] if contender == "published" else [contender])[contender]
    benchmark.group = "training step, memory"
    benchmark.pedantic(function, rounds=1)
    benchmark.extra_info.update(
        {
            **{k: v for k, v in dataclasses.asdict(case).items() if k != "spec"},
            "shape": case.shape,
            "contender": contender,
            "peak_extra_bytes": peak_extra_bytes(case, contender),
        }
    )
