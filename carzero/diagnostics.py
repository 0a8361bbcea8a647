"""`carzero info`: what this installation is, what it can do, and why it would choose what."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from carzero.gate import check
from carzero.ops import DecoderSpec, backends

#: Libraries whose versions matter for results, in the order shown.
LIBRARIES = ("torch", "triton", "numpy", "timm", "transformers", "opencv-python-headless", "safetensors")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare every backend here with the float64 reference (some seconds); exit code 1 if one is wrong",
    )


def run(args: argparse.Namespace) -> int:
    """Print; returns the exit code (1: the gate is red)."""
    found = facts()
    if not args.check:
        print(json.dumps(found, indent=2) if args.json else text(found))
        return 0
    start = time.perf_counter()
    gate = check(report=(lambda _: None) if args.json else (lambda result: print(result, flush=True)))
    seconds = time.perf_counter() - start
    if args.json:
        print(
            json.dumps({**found, "check": {"passed": gate.passed, "seconds": seconds, "rows": gate.rows()}}, indent=2)
        )
    else:
        print(f"{gate.summary()} in {seconds:.1f} s")
    return 0 if gate.passed else 1


def facts() -> dict[str, Any]:
    """Everything `carzero info` says, as JSON-ready data."""
    from carzero import __version__

    return {
        "carzero": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "cpu": cpu(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "native": native(),
        "backends": statuses(),
        "choices": choices(),
        "extras": extras(),
    }


def cpu() -> dict[str, Any]:
    """Processor, threads, and what torch and the native extension may use of it."""
    extension = _extension()
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": dict(extension.cpu_features()) if extension else None,
    }


def native() -> dict[str, Any]:
    """How the C++ extension was built, or that it was not."""
    extension = _extension()
    if extension is None:
        return {"built": False}
    isa, reason = extension.selected_isa()
    return {"built": True, "isa": isa, "isa_reason": reason, **extension.build_info()}


def statuses() -> dict[str, dict[str, Any]]:
    """Each backend on the device it is made for: available or not, and why."""
    found = {}
    for name in backends.BACKENDS:
        able, reason = backends.available(name, "cuda" if name in ("triton", "cuda") else "cpu")
        found[name] = {"available": able, "reason": reason}
    return found


def choices() -> list[dict[str, str]]:
    """Which backend `backend="auto"` takes for CARZero's decoder here, by device and dtype, and why."""
    spec = DecoderSpec()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = []
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            name, reason = backends.choose(
                "auto", device=torch.device(device), dtype=dtype, width=spec.width, heads=spec.heads
            )
            rows.append(
                {"device": device, "dtype": str(dtype).removeprefix("torch."), "backend": name, "reason": reason}
            )
    return rows


def extras() -> dict[str, dict[str, Any]]:
    """Optional parts: which of their packages are missing, and the command that brings them."""
    from packaging.requirements import Requirement

    distribution = metadata.distribution("carzero")
    requirements = [Requirement(r) for r in distribution.requires or []]
    found = {}
    for extra in sorted(distribution.metadata.get_all("Provides-Extra") or []):
        names = [r.name for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]
        missing = [name for name in names if _version(name) is None]
        found[extra] = {"missing": missing, "install": f'pip install "carzero[{extra}]"' if missing else None}
    return found


def text(found: dict[str, Any]) -> str:
    """The facts for people."""
    versions = " ".join(f"{name} {version or '-'}" for name, version in found["versions"].items())
    processor = found["cpu"]
    lines = [
        f"carzero {found['carzero']}",
        f"versions   {versions}",
        f"cpu        {processor['model']}, {processor['cores']} cores, {processor['threads']} threads, torch uses "
        f"{processor['capability']}",
    ]
    if processor["features"] is not None:
        lines.append(
            f"           has {' '.join(n for n, there in processor['features'].items() if there) or 'no extensions'}"
        )
    lines.append(f"gpu        {', '.join(found['gpus']) or 'none'}; torch is built for {_cuda(found['cuda'])}")
    extension = found["native"]
    lines.append(
        f"native     {extension['compiler']}, {extension['build_type']}, for torch 2.11 and later, "
        f"built beside {extension['torch_version']}; runs {extension['isa']}: {extension['isa_reason']}"
        if extension["built"]
        else "native     not built"
    )
    lines.append("backends")
    for name, status in found["backends"].items():
        lines.append(f"  {name:<10} {'available' if status['available'] else 'no':<10} {status['reason']}")
    lines.append("auto")
    for row in found["choices"]:
        lines.append(f"  {row['device']} {row['dtype']:<9} {row['backend']:<10} {row['reason']}")
    lines.append("extras")
    for name, extra in found["extras"].items():
        state = f"missing {', '.join(extra['missing'])}; {extra['install']}" if extra["missing"] else "present"
        lines.append(f"  {name:<10} {state}")
    return "\n".join(lines)


def _extension() -> ModuleType | None:
    try:
        return importlib.import_module("carzero._C")
    except ImportError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _cuda(version: str | None) -> str:
    return f"CUDA {version}" if version else "CPU only"
