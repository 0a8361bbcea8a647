"""Kernels compiled ahead of time for A100, H100 and B200: what they need of a device that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from carzero.kernels.aot import SHARED, TENSOR_CORE, Case, Figures, faults


def not_interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process whose kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def compiled(*arguments: str) -> list[dict]:
    """Lines of ``python -m carzero.kernels.aot --json``."""
    done = not_interpreted("-m", "carzero.kernels.aot", "--json", *arguments)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    wrong = [fault for line in lines for fault in line["faults"]]
    assert wrong == [], "\n".join(wrong)
    assert done.returncode == 0, done.stderr[-3000:]
    return lines


def test_representative_kernels_fit_their_devices() -> None:
    lines = compiled()
    assert {line["target"] for line in lines} == set(SHARED)
    kernels = {line["name"].split(":")[0] for line in lines}
    assert {"forward_whole", "backward_queries", "backward_rows"} <= kernels
    attention = [line for line in lines if line["name"].startswith(("forward_", "backward_"))]
    assert all(line["figures"]["tensor_cores"] > 0 for line in attention)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", sorted(SHARED))
def test_every_kernel_of_the_tables_fits_its_device(target: int) -> None:
    lines = compiled("--all", "--target", str(target))
    assert len({line["name"] for line in lines}) == len(lines) > 50


def test_cases_are_named_once_and_every_module_takes_part() -> None:
    program = (
        "import json; from carzero.kernels import aot\n"
        "print(json.dumps([[case.name, case.target, case.kernel.__name__] for case in aot.cases()]))"
    )
    found = json.loads(not_interpreted("-c", program).stdout)
    names = [(name, target) for name, target, _ in found]
    assert len(set(names)) == len(names)
    assert {"forward_online", "gemm", "outer"} <= {kernel for *_, kernel in found}


@pytest.mark.parametrize("target", sorted(SHARED))
def test_a_fault_names_kernel_target_and_figure(target: int) -> None:
    case = Case("forward_whole: bf16, P=197", None, {"q": "*bf16"}, {}, {}, target)
    assert faults(case, Figures(255, 0, SHARED[target], 44)) == []
    found = faults(case, Figures(255, 12, SHARED[target] + 1, 0))
    where = f"forward_whole: bf16, P=197, sm_{target}: "
    assert found == [
        f"{where}12 bytes spill at 255 registers, 0 are allowed",
        f"{where}{SHARED[target] + 1} bytes of shared memory, {SHARED[target]} are there",
        f"{where}no {TENSOR_CORE[target]} instruction for 16-bit products",
    ]
    assert faults(case._replace(tensor_cores=False), Figures(255, 0, 0, 0)) == []
    wide = case._replace(signature={"q": "*fp32"}, tensor_cores=False)
    assert faults(wide, Figures(255, 0, 0, 3)) == [
        f"{where}{TENSOR_CORE[target]} instructions, which round float32 to TF32"
    ]
    assert faults(wide, Figures(255, 0, 0, 0)) == []


def test_a_tile_that_is_too_large_is_found() -> None:
    """The gate can fail: a row of 512 keys held at once on A100."""
    program = (
        "import torch; from carzero.kernels import aot, attention_aot as a; from carzero.kernels.attention import *\n"
        "from carzero.kernels.attention_table import Tiles\n"
        "case = a._case(forward_whole, 80, torch.bfloat16, 64, Tiles(64, 512, 4, 1), 'too large',"
        " {'COUNT': False, 'DROPOUT': False}, True)\n"
        "print([fault for *_, found in aot.run([case]) for fault in found])"
    )
    done = not_interpreted("-c", program)
    assert "sm_80" in done.stdout
    assert "bytes spill" in done.stdout or "bytes of shared memory" in done.stdout


def test_it_refuses_to_run_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "carzero.kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr
