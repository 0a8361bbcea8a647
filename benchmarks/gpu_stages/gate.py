"""Correctness first: the quick gate, the op's test matrix on the device, the kernels' tests, memory checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from carzero.gate import check

from .suite import Suite

ROOT = Path(__file__).resolve().parents[2]
#: The op's tests that run it wherever CARZERO_TEST_DEVICE says; the others are about the CPU or about no device.
MATRIX = [f"tests/ops/test_ops_{name}.py" for name in ("accuracy", "collapse", "invariance", "layouts", "random")]
#: Run under compute-sanitizer: the quick gate on small shapes, on the GPU alone.
SMALL = "from carzero.gate import check; gate = check(); print(gate.summary()); raise SystemExit(not gate.passed)"


def run(suite: Suite) -> None:
    """Rows with ``passed``; the other stages report nothing unless all are true."""
    suite.row("quick gate", lambda: _quick(), seconds=60)
    matrix = ["tests/ops/test_ops_rng.py"] if suite.dry else MATRIX
    suite.row("op test matrix", lambda: _pytest(suite, matrix), seconds=200)
    if not suite.dry:
        suite.row("kernel tests", lambda: _pytest(suite, ["tests/kernels"]), seconds=100)
        suite.row("MaxSim tests", lambda: _pytest(suite, ["tests/similarities/test_fused_max_sim.py"]), seconds=60)
        suite.row("CUDA core tests", lambda: _pytest(suite, ["tests/cuda/test_cuda_device.py"]), seconds=60)
    for tool in ("memcheck", "racecheck"):
        suite.row(f"compute-sanitizer {tool}", lambda tool=tool: _sanitizer(suite, tool), seconds=120)


def _quick() -> dict[str, Any]:
    gate = check()
    return {"passed": gate.passed, "summary": gate.summary(), "rows": gate.rows()}


def _pytest(suite: Suite, arguments: list[str]) -> dict[str, Any]:
    """Tests in a process of their own, on the suite's device."""
    environment = {**os.environ, "CARZERO_TEST_DEVICE": suite.device.type}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(30.0, suite.left), check=False
    )
    tail = done.stdout.strip().splitlines()[-1:] or [done.stderr[-500:]]
    found: dict[str, Any] = {"passed": done.returncode == 0, "summary": tail[0], "command": " ".join(command[1:])}
    if done.returncode:
        found["output"] = done.stdout[-6000:]
    return found


def _sanitizer(suite: Suite, tool: str) -> dict[str, Any]:
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None or suite.device.type != "cuda":
        return {"absent": "no compute-sanitizer" if program is None else "no CUDA device"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(30.0, suite.left), check=False
    )  # fmt: skip
    output = done.stdout + done.stderr
    if re.search(r"Device not supported|Unable to find|error 999", output):
        return {"absent": "compute-sanitizer does not work on this machine", "output": output[-1000:]}
    return {"passed": done.returncode == 0, "summary": output.strip().splitlines()[-1:], "output": output[-2000:]}
