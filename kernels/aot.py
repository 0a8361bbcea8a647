"""Every Triton kernel compiled ahead of time for GPUs that are not there: spills, shared memory, tensor cores.

A module of this package takes part by a function ``aot_cases()`` that yields `Case`: its kernels as its tables run
them. What is checked, for each: it compiles; its shared memory fits the device; nothing spills; 16-bit products run on
the tensor cores (HMMA on sm_80, HGMMA on sm_90, UTCHMMA on sm_100), those of float32 alone do not.

Usage, without TRITON_INTERPRET, with or without a GPU::

    python -m carzero.kernels.aot                       # the representative cases: what is wrong, exit code 1
    python -m carzero.kernels.aot --all --target 90     # every case of one device
    python -m carzero.kernels.aot --only attention --table    # figures as Markdown
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Launch, recording

#: Bytes of shared memory that a program may have: 163 KiB on A100, 227 KiB on H100, H200 and B200.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: The tensor cores' instruction for 16-bit operands.
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
#: As Triton writes them.
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


class Case(NamedTuple):
    """One kernel as it is compiled for one device.

    Args:
        name: ``kernel: what it is compiled for``, unique for a target.
        kernel: the `triton.jit` function.
        signature: type of each argument that is not constant, ``{"q": "*bf16", "rows": "i32"}``.
        constants: value of each other argument; None for a tensor that is absent.
        options: ``num_warps``, ``num_stages``.
        target: 80, 90 or 100.
        divisible: integer arguments that 16 divides; pointers are taken to be aligned to 16 bytes.
        tensor_cores: whether `TENSOR_CORE` must be there; for 16-bit products on tiles large enough.
        representative: whether it is compiled in every run of the tests.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    target: int
    divisible: tuple[str, ...] = ()
    tensor_cores: bool = True
    representative: bool = False


class Figures(NamedTuple):
    """What the compiler made of a case; bytes, and instructions in the machine code."""

    registers: int
    spills: int
    shared: int
    tensor_cores: int


def cases() -> Iterator[Case]:
    """Those of all modules of this package, in the modules' order."""
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        found = importlib.import_module(f"{__package__}.{module}")
        if hasattr(found, "aot_cases"):
            yield from found.aot_cases()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that holds nothing, for a launcher inside `launches`."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(call: Callable[[], object]) -> list[Launch]:
    """What a launcher starts."""
    with recording() as launched:
        call()
    return launched


def case_of(launch: Launch, what: str, target: int, *, tensor_cores: bool, representative: bool) -> Case:
    """What Triton would compile at the launch: constants, types, and which numbers 16 divides."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    for parameter in launch.kernel.params:
        value, name = launch.arguments[parameter.name], parameter.name
        fixed = not parameter.do_not_specialize and type(value) is int
        if parameter.is_constexpr or value is None or (fixed and value == 1):
            constants[name] = value
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            divisible += [name] if fixed and value % 16 == 0 else []
    return Case(
        f"{launch.kernel.__name__}: {what}", launch.kernel, signature, constants,
        {"num_warps": 4, "num_stages": 3, **launch.options}, target, tuple(divisible), tensor_cores, representative,
    )  # fmt: skip


def compile_case(case: Case) -> Figures:
    """Compile it anew; Triton prints the assembler's account of registers and spills."""
    names = case.kernel.arg_names
    missing = set(names) ^ (case.signature.keys() | case.constants.keys())
    if missing:
        raise ValueError(f"aot: {case.name}: signature and constants must name each argument once, see {missing}.")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or name in case.divisible]
    source = ASTSource(
        case.kernel, signature, {(names.index(name),): value for name, value in case.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        made = triton.compile(source, target=GPUTarget("cuda", case.target, 32), options=dict(case.options))
    account = log.getvalue()
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", account)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", account)]
    if not registers or not spills:
        raise RuntimeError(f"aot: {case.name}: no registers and spills in the assembler's account: {account!r}")
    code = _disassembled(made.asm["cubin"])
    instruction = rf"\b{TENSOR_CORE[case.target]}\b"
    return Figures(max(registers), max(spills), made.metadata.shared, len(re.findall(instruction, code)))


def _disassembled(cubin: bytes) -> str:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tools / "cuobjdump", "-sass", file.name]
        path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
    return done.stdout


def faults(case: Case, figures: Figures) -> list[str]:
    """A sentence for each bound that is broken."""
    where = f"{case.name}, sm_{case.target}"
    found = []
    if figures.spills:
        found.append(f"{where}: {figures.spills} bytes spill at {figures.registers} registers, 0 are allowed")
    if figures.shared > SHARED[case.target]:
        found.append(f"{where}: {figures.shared} bytes of shared memory, {SHARED[case.target]} are there")
    if case.tensor_cores and not figures.tensor_cores:
        found.append(f"{where}: no {TENSOR_CORE[case.target]} instruction for 16-bit products")
    if figures.tensor_cores and not any(f"*{name}" in case.signature.values() for name in ("bf16", "fp16")):
        found.append(f"{where}: {TENSOR_CORE[case.target]} instructions, which round float32 to TF32")
    return found


def run(chosen: list[Case]) -> Iterator[tuple[Case, Figures | None, list[str]]]:
    """Compile each, and once what several cases share; one that does not compile has no figures."""
    made: dict[str, Figures] = {}
    for case in chosen:
        # a tile of some rows is one program for every P
        program = repr((case.kernel, case._replace(name="", kernel=None, representative=False)))
        try:
            figures = made.get(program) or compile_case(case)
            made[program] = figures
        except Exception as error:
            # the other cases are worth knowing; this one's fault makes the exit code 1
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            yield case, None, [f"{case.name}, sm_{case.target}: {type(cause).__name__}: {cause}"]
        else:
            yield case, figures, faults(case, figures)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case, not the representative ones alone")
    parser.add_argument("--target", type=int, choices=sorted(SHARED), action="append", help="default: all three")
    parser.add_argument("--only", default="", help="regular expression that a case's name must match")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each case")
    parser.add_argument("--table", action="store_true", help="figures as a Markdown table")
    args = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("aot: unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    chosen = [
        case
        for case in cases()
        if (args.all or case.representative)
        and case.target in (args.target or SHARED)
        and re.search(args.only, case.name)
    ]
    if args.table:
        print("| kernel | target | warps | stages | registers | spills | shared KiB | tensor-core instructions |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
    wrong = 0
    for case, figures, found in run(chosen):
        wrong += bool(found)
        if args.json:
            fields = None if figures is None else figures._asdict()
            print(
                json.dumps({"name": case.name, "target": case.target, "figures": fields, "faults": found}), flush=True
            )
        elif args.table and figures is not None:
            print(
                f"| {case.name} | sm_{case.target} | {case.options['num_warps']} | {case.options['num_stages']} "
                f"| {figures.registers} | {figures.spills} | {figures.shared / 1024:.0f} | {figures.tensor_cores} |",
                flush=True,
            )
        for sentence in found:
            print(sentence, file=sys.stderr, flush=True)
    print(f"aot: triton {triton.__version__}: {len(chosen)} compiled, {wrong} wrong", file=sys.stderr)
    return 1 if wrong or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
