"""The library of CUDA kernels: whether it is here, what it was built for, what it can run."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from .masks import PairMasks
from .rng import threshold

#: Rows of a memory and columns of a head that the kernels of csrc/cuda can have.
MOST_ROWS, MOST_HEAD_WIDTH = 256, 256
#: Rows of all heads together, and columns, that the absorbed kernel can have.
MOST_ABSORBED_ROWS, MOST_ABSORBED_WIDTH = 64, 1024

_LIBRARY = Path(__file__).resolve().parents[1] / "libcarzero_cuda.so"
# compute capabilities that each architecture's code runs on. Other 8.x have too little shared memory.
_RUNS_ON = {"80": {(8, 0)}, "90a": {(9, 0)}, "100": {(10, 0), (10, 3)}}


@functools.cache
def library() -> tuple[tuple[str, ...] | None, str]:
    """Architectures that the library was built for, or None where there is none; and why, or by which nvcc."""
    if not _LIBRARY.exists():
        return None, "its kernels are not built: put nvcc on PATH and run `pip install -e .` again"
    try:
        # registers torch.ops.carzero_cuda
        torch.ops.load_library(str(_LIBRARY))
        built = ctypes.CDLL(str(_LIBRARY))
        built.carzero_cuda_targets.restype = built.carzero_cuda_nvcc.restype = ctypes.c_char_p
        names = tuple(built.carzero_cuda_targets().decode().split(","))
        nvcc = built.carzero_cuda_nvcc().decode()
    except (OSError, AttributeError) as error:
        return None, f"its kernels do not load ({error}); build them again against this torch"
    return names, f"built for sm_{', sm_'.join(names)} by nvcc {nvcc}"


def available(device: torch.device) -> tuple[bool, str]:
    """Whether the kernels run on a device, and why (not)."""
    targets, why = library()
    if targets is None:
        return False, why
    if device.type != "cuda":
        return False, f"runs on CUDA tensors, not on {device.type}; {why}"
    if not torch.cuda.is_available():
        return False, f"no CUDA device is visible; {why}"
    capability = torch.cuda.get_device_capability(device)
    if not any(capability in _RUNS_ON.get(target, set()) for target in targets):
        return False, f"{why}, not for compute capability {capability[0]}.{capability[1]}"
    return True, why


def dropout_arguments(masks: PairMasks | None, layer: int) -> tuple:
    """Seed, memory and query indices, threshold, layer and direction as the kernels take them."""
    if masks is None:
        return None, None, None, 0, 0, 0
    return (
        masks.seed.reshape(1), masks.memory.flatten().contiguous(), masks.query.contiguous(), threshold(masks.p),
        layer, masks.direction,
    )  # fmt: skip
