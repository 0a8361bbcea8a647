"""What `carzero bench` does: a gate, the cases, a table each."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from carzero.bench.cases import Case, contenders, cpu_backends, flops
from carzero.bench.measure import gemm_rate, peak_extra_bytes, take_turns
from carzero.diagnostics import facts
from carzero.errors import UserError
from carzero.gate import check


def cases(quick: bool) -> list[Case]:
    """Images and texts, forward and forward+backward."""
    base = Case(memories=4, queries=32) if quick else Case()
    dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    return [
        dataclasses.replace(base, kind=kind, mode=mode, dtype=dtype)
        for kind in ("images", "texts")
        for mode in ("forward", "forward+backward")
        for dtype in dtypes
    ]


def measure_case(case: Case, rounds: int, memory: bool, say: Console) -> dict[str, Any]:
    """One case as plain data: G, and for each contender its samples, ratio to `published`, share of G, peak bytes."""
    with say.status(case_title(case)) as status:
        functions = contenders(case, cpu_backends())
        timings, rates = take_turns(functions, gemm_rate(case.dtype), rounds, lambda text: status.update(text))
        rate = sorted(rates)[len(rates) // 2]
        rows = {}
        for name, timing in timings.items():
            status.update(f"{name}, memory")
            rows[name] = {
                "seconds": list(timing.seconds),
                "median": timing.median,
                "spread": timing.spread,
                "times_faster": timings["published"].median / timing.median,
                "share_of_gemm_rate": flops(case) / timing.median / rate,
                "peak_extra_bytes": peak_extra_bytes(case, name) if memory else None,
            }
    fields = dataclasses.asdict(case)
    return {"case": fields, "shape": case.shape, "flops": flops(case), "gemm_flops_per_s": rate, "rows": rows}


def case_title(case: Case) -> str:
    """One line that names the case."""
    extra = ", dropout 0.1" if case.dropout else ""
    dtype = "autocast bfloat16" if case.dtype == "bfloat16" else case.dtype
    return f"{case.kind}, {case.mode}{extra}, {dtype}: {case.shape}"


def case_table(result: dict[str, Any]) -> Table:
    """The case as a table for the terminal."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "median s", "spread", "x published", "share of G", "peak extra MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in result["rows"].items():
        peak = "-" if row["peak_extra_bytes"] is None else f"{row['peak_extra_bytes'] / 2**20:.0f}"
        table.add_row(
            name,
            f"{row['median']:.4f}",
            f"{row['spread']:.0%}",
            f"{row['times_faster']:.2f}",
            f"{row['share_of_gemm_rate']:.2f}",
            peak,
        )
    return table


def run_bench(*, quick: bool, as_json: bool, rounds: int | None, memory: bool) -> int:
    """Measure and print; returns the exit code (1: the correctness gate is red, and nothing is reported)."""
    rounds = rounds if rounds is not None else (3 if quick else 5)
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1, got {rounds}.")
    say = Console(stderr=True)
    out = Console(width=110) if not sys.stdout.isatty() else Console()
    with say.status("correctness gate"):
        gate = check()
    if not gate.passed:
        print("The correctness gate is red, so no speed is reported. See: carzero info --check", file=sys.stderr)
        return 1
    memory = memory and sys.platform == "linux"
    results = []
    for case in cases(quick):
        result = measure_case(case, rounds, memory, say)
        results.append(result)
        if not as_json:
            rate = result["gemm_flops_per_s"] / 1e9
            out.print(case_title(case), highlight=False, soft_wrap=True)
            out.print(case_table(result))
            out.print(f"G = {rate:.0f} GFLOP/s; the case needs {result['flops'] / 1e9:.1f} GFLOP\n")
    if as_json:
        print(json.dumps({"facts": facts(), "cases": results}, indent=2))
    return 0
