"""The op against the published module, forward and forward+backward, time and memory, images and texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from carzero.bench.cases import COMPILED, Case, Contender, contenders, flops
from carzero.gate import runnable
from carzero.ops.spec import DecoderSpec

from .suite import Suite
from .timing import peak_bytes, take_turns

TOY = DecoderSpec(width=64, layers=2, ffn=96, head_hidden=(64, 48, 32))
#: M = Q. The published module keeps about 149 GB at 1,024 and has no row from there on.
SIZES = (256, 512, 1024, 2048, 4096)
PUBLISHED_UP_TO = 512


def run(suite: Suite) -> None:
    """A row per case: all contenders that fit, in turns, and each one's peak memory."""
    sizes = (4,) if suite.dry else SIZES
    for size in sizes:
        for kind in ("images", "texts"):
            for mode in ("forward+backward", "forward"):
                for dtype in ("bfloat16", "float16") if size == sizes[0] else ("bfloat16",):
                    case = make_case(suite, kind, mode, dtype, size)  # type: ignore[arg-type]
                    # the largest step is 16 times that of the size before
                    suite.row(case_name(case), lambda case=case: measure(suite, case), seconds=15 + (size / 700) ** 2)
    # a dry run compiles the smaller graph only: on a CPU the other takes minutes
    for mode in ("default",) if suite.dry else ("default", "max-autotune"):
        case = make_case(suite, "images", "forward" if suite.dry else "forward+backward", "bfloat16", sizes[0])
        suite.row(
            f"{case_name(case)}, published under torch.compile, {mode}",
            lambda case=case, mode=mode: measure(suite, case, compiled=mode),
            seconds=200,
        )
    for size in sizes[:3]:
        case = make_case(suite, "images", "forward+backward", "bfloat16", size)
        suite.row(f"{case_name(case)}, recompute", lambda case=case: recompute_modes(suite, case), seconds=40)


def make_case(
    suite: Suite,
    kind: Literal["images", "texts"],
    mode: Literal["forward", "forward+backward"],
    dtype: str,
    size: int,
) -> Case:
    spec = TOY if suite.dry else DecoderSpec()
    return Case(kind, mode, dtype, size, size, spec, device=suite.device.type)


def case_name(case: Case) -> str:
    return f"{case.kind}, {case.mode}, {case.dtype}, M=Q={case.memories}"


def own_backends(suite: Suite) -> list[str]:
    """Backends that run on the device and compete."""
    return [backend for backend, device in runnable() if device == suite.device.type]


def measure(suite: Suite, case: Case, compiled: str | None = None) -> dict[str, Any]:
    """All contenders of a case in turns."""
    with_published = case.memories <= PUBLISHED_UP_TO
    names = own_backends(suite) if compiled is None else []
    runs = contenders(case, names, compiled=compiled, published=with_published)
    if compiled is not None:
        runs = {name: run for name, run in runs.items() if name in ("published", COMPILED)}
    times = take_turns(runs, suite.device, rounds=suite.rounds())
    base = times.get("published")
    rows = {}
    for name, time in times.items():
        rows[name] = {
            **time,
            "flops_per_s": flops(case) / time["seconds"],
            "times_faster": base["seconds"] / time["seconds"] if base else None,
            "peak_bytes": memory(suite, runs[name]),
        }
    return {"shape": case.shape, "flops": flops(case), "contenders": rows}


def memory(suite: Suite, run: Contender) -> int | None:
    """Peak bytes beyond inputs, weights and their gradients, which are there from the run before."""
    return peak_bytes(run, suite.device)


def recompute_modes(suite: Suite, case: Case) -> dict[str, Any]:
    """Time and memory of each backend by recompute mode; a backend without a mode says so."""
    found: dict[str, Any] = {}
    for backend in own_backends(suite):
        runs: dict[str, Callable[[], object]] = {}
        for mode in ("full", "layer", "none"):
            run = contenders(case, [backend], published=False, recompute=mode)[backend]
            try:
                run()
            except torch.cuda.OutOfMemoryError:
                found[f"{backend}, {mode}"] = {"out_of_memory": True}
            except RuntimeError as error:
                found[f"{backend}, {mode}"] = {"not_run": str(error)[:300]}
            else:
                runs[mode] = run
        for mode, time in take_turns(runs, suite.device, rounds=suite.rounds()).items():
            found[f"{backend}, {mode}"] = {**time, "peak_bytes": peak_bytes(runs[mode], suite.device)}
    return {"shape": case.shape, "contenders": found}
