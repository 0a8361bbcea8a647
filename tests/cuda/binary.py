"""What the compiled CUDA kernels use, read from the library's binary, and the committed table of it.

    python tests/cuda/binary.py            # print the tables of docs/cuda.md
    python tests/cuda/binary.py --write    # after a build: replace tests/cuda/binary_table.json

Registers come from ``cuobjdump -res-usage``; spills are local-memory instructions, tensor-core products are matrix
instructions and waits those for wgmma, counted in ``cuobjdump -sass``. Shared memory is what plan.h asks for, at
CARZero's shapes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from carzero.ops import cuda

TABLE = Path(__file__).with_name("binary_table.json")
LIBRARY = Path(cuda.__file__).resolve().parents[1] / "libcarzero_cuda.so"
_KERNEL = re.compile(r"(forward|query|key|wgmma|wgmma_backward)_kernelINS0_\d(Bf16|F16)E((?:L[ib]\d+E)+)")


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: of the toolkit, or of the triton wheel."""
    found = shutil.which(name)
    if found is None:
        try:
            import triton
        except ImportError:
            pytest.skip(f"cuda: neither the CUDA toolkit nor triton brings {name}")
        found = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)
    return found


def kernel(mangled: str) -> str | None:
    """``forward<Bf16, 7, 2, 0, 8, 1>``: template arguments as in plan.h."""
    found = _KERNEL.search(mangled)
    if found is None:
        return None
    numbers = re.findall(r"L[ib](\d+)E", found[3])
    return f"{found[1]}<{', '.join([found[2], *numbers])}>"


def run(*arguments: str) -> str:
    # cuobjdump calls nvdisasm, which lies beside it
    path = f"{Path(arguments[0]).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        arguments, capture_output=True, text=True, check=True, timeout=300, env={**os.environ, "PATH": path}
    ).stdout


def read(library: Path = LIBRARY) -> dict[str, dict[str, dict[str, int]]]:
    """``{architecture: {kernel: {registers, spills, products, waits}}}``."""
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    arch, name = "", None
    for line in run(tool("cuobjdump"), "-res-usage", str(library)).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif "Function" in line:
            name = kernel(line)
        elif name and (match := re.search(r"REG:(\d+) STACK:(\d+)", line)):
            found[arch][name] = {"registers": int(match[1]), "spills": 0, "products": 0, "waits": 0}
            name = None
    for line in run(tool("cuobjdump"), "-sass", str(library)).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif "Function" in line:
            name = kernel(line)
        elif name and re.search(r"\b(STL|LDL)\b", line):
            found[arch][name]["spills"] += 1
        elif name and re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", line):
            found[arch][name]["products"] += 1
        elif name and "WARPGROUP.DEPBAR" in line:
            found[arch][name]["waits"] += 1
    return dict(found)


def shared() -> dict[str, int]:
    """Bytes of shared memory of a block, by kernel, P and device, at K = 192, dropout and H = 1."""
    import emulated
    from cases import inputs

    library, found = emulated.load(), {}
    for device_name, device in (("A100", emulated.SM80), ("H100", emulated.SM90)):
        for p in (9, 20, 98, 197, 256):
            q, k, v = inputs(1, 64, p, 1, 192, torch.bfloat16)
            out, lse, _, forward = emulated.forward(library, q, k, v, 1, device=device)
            _, backward = emulated.backward(
                library, out, q, k, v, out, lse, 1, torch.zeros(1, p, 2, 192), device=device
            )
            # one kernel may make all gradients
            names = ("forward", *("query", "key")[-len(backward) :])
            for name, facts in zip(names, (forward, *backward), strict=True):
                found[f"{name}, P={p}, {device_name}"] = facts.shared
    return found


def tables(table: dict[str, Any]) -> str:
    """Markdown for docs/cuda.md."""
    lines = [
        f"Registers a thread, tensor-core instructions, nvcc {table['nvcc']}; bfloat16, float16 differs by a few:", "",
    ]  # fmt: skip
    archs = sorted(table["kernels"])
    lines += [f"| kernel | {' | '.join(archs)} |", "|---" * (len(archs) + 1) + "|"]
    for name in sorted({name for kernels in table["kernels"].values() for name in kernels}):
        if "Bf16" in name:
            cells = []
            for arch in archs:
                facts = table["kernels"][arch].get(name)
                if facts is None:
                    cells.append("")
                    continue
                spilled = f", {facts['spills']} spill instructions" if facts["spills"] else ""
                cells.append(f"{facts['registers']}, {facts['products']}{spilled}")
            lines.append(f"| `{name.replace('Bf16, ', '')}` | {' | '.join(cells)} |")
    lines += ["", "Shared memory of a block in bytes, K = 192, Q = 64:", "", "| P | device | forward | query | key |"]
    lines.append("|---|---|---|---|---|")
    for row in dict.fromkeys(name.split(", ", 1)[1] for name in table["shared"]):
        p, device = row.removeprefix("P=").split(", ")
        found = [table["shared"].get(f"{name}, {row}") for name in ("forward", "query", "key")]
        figures = ["" if figure is None else f"{figure:,}" for figure in found]
        lines.append(f"| {p} | {device} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        nvcc = cuda.library()[1].rpartition(" ")[2]
        TABLE.write_text(json.dumps({"nvcc": nvcc, "shared": shared(), "kernels": read()}, indent=1) + "\n")
    print(tables(json.loads(TABLE.read_text())))
