"""Which backend runs a call, and why. Every choice is a pair (value, reason)."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import cuda
from .spec import DecoderSpec

#: In order of preference where nothing else decides; `reference` is never chosen by itself.
BACKENDS = ("cuda", "triton", "cpp", "torch", "reference")
RECOMPUTE = ("auto", "full", "layer", "none")

#: Replaces "auto" by another backend in every call of the process.
ENVIRONMENT = "CARZERO_BACKEND"

#: Triton's own switch: kernels run on the CPU, element by element. It must be set before they are imported.
INTERPRET = "TRITON_INTERPRET"

_NATIVE_OPS = ("pair_forward", "pair_backward", "pair_attention", "pack_weights")
_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Recompute modes besides "full": what a backend's forward can keep for its backward, the most first.
TAPES = {"torch": ("none", "layer"), "cuda": ("none", "layer"), "triton": ("none",)}
# A tape is worth at most this share of the memory that is free.
_TAPE_SHARE = 0.1


def available(backend: str, device: torch.device | str = "cpu") -> tuple[bool, str]:
    """Whether a backend can run on a device at all, and why (not)."""
    device = torch.device(device)
    check_name("available", "backend", backend, BACKENDS)
    if backend in ("reference", "torch"):
        return True, "plain torch"
    if backend == "triton":
        return _triton(device)
    if backend == "cuda":
        return cuda.available(device)
    if device.type != "cpu":
        return False, f"runs on CPU tensors, not on {device.type}"
    return _native()


@dataclass(frozen=True)
class _Need:
    device: torch.device
    dtype: torch.dtype
    width: int
    heads: int
    recompute: str
    projected_backward: bool
    other: str
    rows: int


def choose(
    backend: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    heads: int,
    recompute: str = "auto",
    projected_backward: bool = False,
    other: DecoderSpec | None = None,
    rows: int = 1,
) -> tuple[str, str]:
    """The backend for a call, and why.

    Args:
        backend: a name, or ``"auto"``: the environment variable CARZERO_BACKEND, else the fastest that can.
        dtype: of memory and queries.
        width, heads: D and H.
        recompute: a mode, or ``"auto"``, which every backend can choose something for.
        projected_backward: gradients through keys and values that were projected before.
        other: the spec of another decoder than CARZero's, or None.
        rows: P.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend was asked for, by argument or environment, and cannot run this call.
    """
    differences = other.differences() if other else ""
    need = _Need(device, dtype, width, heads, recompute, projected_backward, differences, rows)
    check_name("carzero.ops", "backend", backend, ("auto", *BACKENDS))
    asked = backend
    if backend == "auto":
        asked = os.environ.get(ENVIRONMENT, "").strip() or "auto"
        check_name("carzero.ops", f"the environment variable {ENVIRONMENT}", asked, ("auto", *BACKENDS))
    if asked == "auto":
        return _fastest(need)
    able, why = _able(asked, need)
    if able:
        return asked, "asked for" if backend != "auto" else f"{ENVIRONMENT}={asked}"
    source = f"backend={asked!r}" if backend != "auto" else f"{ENVIRONMENT}={asked}"
    raise RuntimeError(
        f"carzero.ops: {source} was asked for and cannot run this call: {why}. "
        f"Use backend={_fastest(need)[0]!r}, or 'auto', which chooses it."
    )


def supports(
    backend: str, *, device: torch.device, dtype: torch.dtype, spec: DecoderSpec, rows: int = 1
) -> tuple[bool, str]:
    """Whether a backend can run a decoder's calls in a dtype, and why (not).

    Args:
        rows: P.
    """
    check_name("supports", "backend", backend, BACKENDS)
    other = spec.other()
    differences = other.differences() if other else ""
    return _able(backend, _Need(device, dtype, spec.width, spec.heads, "auto", False, differences, rows))


def choose_recompute(
    recompute: str, *, backend: str, device: torch.device, tape_bytes: Callable[[str], int]
) -> tuple[str, str]:
    """How much the backward runs again, and why; see `carzero.ops.tape`.

    Args:
        tape_bytes: size of the tape of a mode.
    """
    if recompute != "auto":
        return recompute, "asked for"
    modes = TAPES.get(backend, ())
    if not modes:
        return "full", f"{backend} writes no tape"
    free = free_bytes(device)
    if free is None:
        return "full", "free memory is not known"
    beside = f"beside {free / 2**20:.0f} MiB free"
    for mode in modes:
        if tape_bytes(mode) <= _TAPE_SHARE * free:
            return mode, f"a tape of {tape_bytes(mode) / 2**20:.0f} MiB {beside}"
    return "full", f"a tape of {tape_bytes(modes[-1]) / 2**20:.0f} MiB {beside} is above {_TAPE_SHARE:.0%}"


def check_recompute(recompute: str, other: DecoderSpec | None) -> None:
    """Raises ValueError where a tape was asked for that only CARZero's decoder has."""
    if other and recompute in ("layer", "none"):
        raise ValueError(
            f"carzero.ops: recompute={recompute!r} keeps a tape of CARZero's decoder, and this one has "
            f"{other.differences()}. Use recompute='full', or 'auto', which is the same here."
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that could be allocated on a device now, or None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    for line in table.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_name(function: str, argument: str, name: str, known: tuple[str, ...]) -> None:
    """Raises ValueError with the known names and the nearest."""
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    raise ValueError(
        f"{function}: {argument} must be one of {', '.join(known)}, got {name!r}; the nearest is {near[0]!r}."
    )


def _fastest(need: _Need) -> tuple[str, str]:
    reasons: list[str] = []
    for name in BACKENDS:
        able, why = _able(name, need)
        if able and interpreted(name, need.device):
            able, why = False, "its interpreter is for tests, and has to be asked for"
        if able and name == "cuda":
            # the dispatch waits for a measurement, see docs/cuda.md
            able, why = False, "not yet measured to be faster; ask for it by name"
        if able:
            return name, "; ".join([f"{name}: {why}", *reasons])
        reasons.append(f"not {name}: {why}")
    raise AssertionError("reference and torch run everything")


def _able(name: str, need: _Need) -> tuple[bool, str]:
    able, why = available(name, need.device)
    if not able or name in ("torch", "reference"):
        return able, why
    if need.other:
        return False, f"fuses CARZero's decoder only, and this one has {need.other}"
    if name == "cuda":
        return _able_cuda(need, why)
    if need.dtype not in _NATIVE_DTYPES:
        return False, f"supports float32, bfloat16 and float16, not {str(need.dtype).removeprefix('torch.')}"
    if (need.width // need.heads) % 16:
        return False, f"supports head widths that are multiples of 16, not {need.width // need.heads}"
    modes = ("full", *TAPES.get(name, ()))
    if need.recompute not in ("auto", *modes):
        return False, f"supports recompute={' and '.join(repr(mode) for mode in modes)} only"
    if need.projected_backward and name == "cpp":
        return False, "has no backward through a projected memory"
    return True, why


def interpreted(backend: str, device: torch.device | str) -> bool:
    """Whether a backend that runs on a device does so through an interpreter: right, but never fast."""
    return backend == "triton" and torch.device(device).type == "cpu"


def _triton(device: torch.device) -> tuple[bool, str]:
    emulates = os.environ.get(INTERPRET, "").lower() in ("1", "true", "on", "yes", "y")
    if device.type == "cpu" and not emulates:
        return False, f"runs on CUDA devices; on a CPU only in tests, through its interpreter ({INTERPRET}=1)"
    if device.type not in ("cpu", "cuda"):
        return False, f"runs on CUDA devices, not on {device.type}"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False, "there is no CUDA device"
        if emulates:
            return False, f"{INTERPRET} is set: its kernels would run through the interpreter; unset it"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return False, f"needs compute capability 8.0, this device has {major}.{minor}"
    version, reason = _triton_version()
    if not version:
        return False, reason
    return True, f"triton {version}" + (", interpreted: for tests" if emulates else "")


@functools.cache
def _triton_version() -> tuple[str, str]:
    """The version, or "" and why there is none."""
    try:
        importlib.import_module("triton.language")
    except ImportError as error:
        return "", f"triton cannot be imported ({error}): install the version that belongs to this torch"
    return importlib.import_module("triton").__version__, ""


def _able_cuda(need: _Need, why: str) -> tuple[bool, str]:
    head_width = need.width // need.heads
    if need.dtype not in (torch.bfloat16, torch.float16):
        return False, f"supports bfloat16 and float16, not {str(need.dtype).removeprefix('torch.')}"
    if head_width % 16 or head_width > cuda.MOST_HEAD_WIDTH:
        return False, (f"supports head widths that are multiples of 16 up to {cuda.MOST_HEAD_WIDTH}, not {head_width}")
    if need.rows > cuda.MOST_ROWS:
        return False, f"supports memories of up to {cuda.MOST_ROWS} rows, not {need.rows}"
    return True, why


@functools.cache
def _native() -> tuple[bool, str]:
    try:
        importlib.import_module("carzero._C")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "carzero._C":
            return False, "the native extension is not built: install g++ and run `pip install -e .` again"
        return False, f"the native extension does not load ({error}); build it again against this torch"
    missing = [op for op in _NATIVE_OPS if not hasattr(torch.ops.carzero_native, op)]
    if missing:
        return False, f"the native extension lacks {', '.join(missing)}: it is older than this source; build it again"
    return True, "native extension loaded"
