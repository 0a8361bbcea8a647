"""Tiles of the attention kernels: by device, dtype, head width and rows; the committed choice.

Chosen from ahead-of-time compilation (`python -m carzero.kernels.aot`): no spills, shared memory within the device's
limit, as many queries a tile as that leaves. Times on a GPU have not been measured yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class Tiles(NamedTuple):
    """How a kernel cuts its work.

    Args:
        queries: of a tile.
        rows: of a memory in a tile.
        whole: whether `rows` are all rows of a memory.
    """

    queries: int
    rows: int
    warps: int
    stages: int
    whole: bool = False

    def options(self) -> dict[str, int]:
        """Of Triton's compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages}


class Backward(NamedTuple):
    """Tiles of both passes; `queries` is None where one pass makes all gradients."""

    rows: Tiles
    queries: Tiles | None


def target(device: torch.device) -> int:
    """80, 90 or 100: whose tiles a device gets; 80 through the interpreter and on what is newer or smaller than these."""
    if device.type != "cuda":
        return 80
    major, _ = torch.cuda.get_device_capability(device)
    return {9: 90, 10: 100}.get(major, 80)


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: exactly rounded, like everything else in a float32 call."""
    return "ieee" if dtype == torch.float32 else "tf32"


def padded(rows: int) -> int:
    """The power of two, 16 at least, that holds a memory's rows."""
    return max(16, triton.next_power_of_2(rows))


def forward_tiles(target: int, dtype: torch.dtype, width: int, rows: int) -> Tiles:
    if rows <= 256:
        return Tiles(64, padded(rows), 4, 1, True)
    return Tiles(64, 64, 4, 2)


def backward_tiles(target: int, dtype: torch.dtype, width: int, rows: int) -> Backward:
    if rows <= 32:
        return Backward(Tiles(64, padded(rows), 4, 1, True), None)
    return Backward(Tiles(64, 64, 8, 1), Tiles(64, 64, 8, 2))
