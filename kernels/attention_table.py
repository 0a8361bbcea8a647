"""Tiles of the attention kernels by device, operand width and rows of a memory: the committed choice.

Source: ahead-of-time compilation at the published head width of 192, `python -m carzero.kernels.aot --all --table`:
no spills and shared memory within the device's limit; among those, as many queries a tile as that leaves, and whole
rows where they fit. No choice has been measured on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

#: In place of a tile's rows: all of the memory's, padded to a power of two.
ALL = 0
#: In place of the most rows that a line is for.
ANY = 1 << 62


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

    def of(self, rows: int) -> Tiles:
        """These tiles for a memory of so many rows."""
        if self.rows != ALL:
            return self
        return self._replace(rows=max(16, triton.next_power_of_2(rows)), whole=True)


class Backward(NamedTuple):
    """Tiles of both passes; `queries` is None where one pass makes all gradients."""

    rows: Tiles
    queries: Tiles | None


#: Of the head-averaged maps, by bytes of an operand: Hopper's products want 64 queries, float32 registers for operands.
MAPS = {2: Tiles(64, 32, 4, 1), 4: Tiles(32, 16, 8, 1)}
#: Of the kept lanes of rows with counts.
LANES = Tiles(64, 32, 4, 1)

#: (device, bytes of an operand, whether rows have counts): lines of (most rows, tiles).
_FORWARD: dict[tuple[int, int, bool], tuple[tuple[int, Tiles], ...]] = {
    (80, 2, False): ((32, Tiles(64, ALL, 4, 1)), (128, Tiles(64, ALL, 8, 1)), (ANY, Tiles(64, 32, 8, 2))),
    (80, 2, True): ((32, Tiles(64, ALL, 4, 1)), (128, Tiles(64, ALL, 8, 1)), (ANY, Tiles(64, 32, 8, 2))),
    (90, 2, False): ((256, Tiles(64, ALL, 4, 1)), (ANY, Tiles(64, 64, 8, 2))),
    (90, 2, True): ((64, Tiles(64, ALL, 4, 1)), (ANY, Tiles(64, 64, 8, 2))),
    (100, 2, False): ((32, Tiles(64, ALL, 4, 1)), (128, Tiles(128, ALL, 8, 1)), (ANY, Tiles(64, 64, 8, 2))),
    (100, 2, True): ((32, Tiles(64, ALL, 4, 1)), (ANY, Tiles(64, 64, 8, 2))),
}
_BACKWARD: dict[tuple[int, int, bool], tuple[tuple[int, Tiles, Tiles | None], ...]] = {
    (80, 2, False): ((ANY, Tiles(64, 16, 8, 1), Tiles(64, 16, 8, 2)),),
    (80, 2, True): ((ANY, Tiles(64, 16, 8, 1), Tiles(64, 16, 8, 2)),),
    (90, 2, False): ((32, Tiles(64, ALL, 8, 1), None), (ANY, Tiles(64, 32, 8, 1), Tiles(64, 64, 8, 2))),
    (90, 2, True): ((32, Tiles(64, ALL, 8, 1), None), (ANY, Tiles(64, 32, 8, 1), Tiles(64, 64, 8, 2))),
    (100, 2, False): ((32, Tiles(64, ALL, 8, 1), None), (ANY, Tiles(64, 64, 8, 1), Tiles(64, 64, 8, 2))),
    (100, 2, True): ((32, Tiles(64, ALL, 8, 1), None), (ANY, Tiles(64, 32, 8, 1), Tiles(64, 64, 8, 2))),
}
# Heads of one 64-column part: at 256 rows 4 warps spilled 8 bytes.
_NARROW = 64
_NARROW_FORWARD = {
    (90, 2, False): ((128, Tiles(64, ALL, 4, 1)), (256, Tiles(64, ALL, 8, 1)), (ANY, Tiles(64, 64, 8, 2))),
}
# What fits everywhere: float32, which is multiplied without tensor cores and with operands in registers, and devices
# with 99 KiB of shared memory.
_SMALL_FORWARD = ((32, Tiles(32, ALL, 8, 1)), (ANY, Tiles(32, 16, 8, 1)))
_SMALL_BACKWARD = ((ANY, Tiles(32, 16, 8, 1), Tiles(32, 16, 8, 1)),)
# The published width; wider ones get smaller tiles.
_WIDEST = 192
_WIDE_FORWARD = {(90, 2): ((ANY, Tiles(64, 32, 8, 2)),), (100, 2): ((ANY, Tiles(64, 32, 8, 2)),)}
# On A100 dq with 8 warps spilled 4 bytes.
_WIDE_BACKWARD = {
    (80, 2): ((ANY, Tiles(32, 16, 8, 1), Tiles(32, 16, 4, 1)),),
    (90, 2): ((ANY, Tiles(32, 16, 8, 1), Tiles(64, 32, 8, 2)),),
    (100, 2): ((ANY, Tiles(32, 16, 8, 1), Tiles(64, 32, 8, 2)),),
}
# Of dk and dv, 8 warps spilled 16 bytes; wider heads need more than 99 KiB with 32 queries.
_FLOAT32_ROWS, _WIDE_FLOAT32_ROWS = Tiles(32, 16, 4, 1), Tiles(16, 16, 8, 1)
#: (device, whether heads are wider than `_WIDEST`) where dq in float32 spilled up to 12 bytes with 8 warps.
_FOUR_WARPS = ((100, False), (100, True), (80, True))


def target(device: torch.device) -> int:
    """80, 90 or 100, whose tiles a device gets, or 0: the small ones, also through the interpreter."""
    if device.type != "cuda":
        return 0
    return {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get(torch.cuda.get_device_capability(device), 0)


def precision(dtype: torch.dtype) -> str:
    """How products are made: float32 operands are not rounded; for 16-bit ones it does not matter."""
    return "ieee" if dtype == torch.float32 else "tf32"


def draws_ahead(target: int, count: bool) -> bool:
    """Whether dropout's lanes are drawn by a kernel of their own: where rows have counts, and on A100.

    Ampere's products hold their operands in registers, and the generator does not fit beside them: 32 to 64 queries
    times 16 to 64 rows of dq spilled 132 to 11,552 bytes, with 4 and with 8 warps.
    """
    return count or target == 80


def forward_tiles(target: int, dtype: torch.dtype, width: int, rows: int, *, count: bool) -> Tiles:
    """Of the forward, for heads of a width and memories of so many rows."""
    if width > _WIDEST:
        lines = _WIDE_FORWARD.get((target, dtype.itemsize), _SMALL_FORWARD)
    else:
        key = (target, dtype.itemsize, count)
        lines = (_NARROW_FORWARD.get(key) if width <= _NARROW else None) or _FORWARD.get(key, _SMALL_FORWARD)
    return next(tiles.of(rows) for most, tiles in lines if rows <= most)


def backward_tiles(target: int, dtype: torch.dtype, width: int, rows: int, *, count: bool) -> Backward:
    """Of the backward, for heads of a width and memories of so many rows."""
    if dtype == torch.float32:
        wide = width > _WIDEST
        queries = Tiles(32, 16, 4 if (target, wide) in _FOUR_WARPS else 8, 1)
        return Backward(_WIDE_FLOAT32_ROWS if wide else _FLOAT32_ROWS, queries)
    if width > _WIDEST:
        lines = _WIDE_BACKWARD.get((target, dtype.itemsize), _SMALL_BACKWARD)
    else:
        lines = _BACKWARD.get((target, dtype.itemsize, count), _SMALL_BACKWARD)
    return next(Backward(tiles.of(rows), queries) for most, tiles, queries in lines if rows <= most)
