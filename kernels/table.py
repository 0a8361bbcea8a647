"""Who multiplies: the committed table of GEMM choices, `table.json`, one row per shape and device.

A row says which of Triton (the epilogue in the product's registers) and cuBLAS (the epilogue as a kernel of its own)
was faster, with what tile, and how that is known. A row whose source is ``"estimate"`` was not measured yet;
``benchmarks/gpu_suite.py --stage kernels`` measures both, and ``benchmarks/gpu_table.py`` writes the rows anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("table.json")

#: What a GEMM is for: see the functions of `kernels.gemm`, and `outer` of `kernels.outer`.
ROLES = ("norm", "affine", "branch", "pull", "pull_gated", "outer")


@dataclass(frozen=True)
class Choice:
    """How one GEMM runs.

    Args:
        by: ``"triton"`` or ``"cublas"``.
        block: rows, columns and depth of a Triton tile, also where cuBLAS was chosen.
        halves: whether the epilogue runs on one half of a tile's columns after the other, in fewer registers.
        flatten: whether a program's tiles are one loop to the compiler, which then loads the next during an epilogue.
        drawn_once: whether one thread draws what elements of several threads need, see `philox.drawn_once`.
        reason: where the choice comes from.
    """

    by: str
    block: tuple[int, int, int]
    warps: int
    stages: int
    halves: bool
    flatten: bool
    drawn_once: bool
    reason: str

    @property
    def width(self) -> int:
        """Columns that an epilogue sees at a time."""
        return self.block[1] // 2 if self.halves else self.block[1]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        device: ``"sm_80"``, ``"sm_90"``, ``"sm_100"``, or ``"interpreter"``.
        bits: of the operands.
        role: one of `ROLES`.
        k, n: the product is ``[R, k] x [k, n]``; for `outer` ``[k, R] x [R, n]``. 0 stands for any.
        dropout: whether the epilogue draws masks.
        source: ``"estimate"``, or commit, device and both times of the measurement.
    """

    device: str
    bits: int
    role: str
    k: int
    n: int
    dropout: bool
    by: str
    block: tuple[int, int, int]
    warps: int
    stages: int
    halves: bool
    flatten: bool
    drawn_once: bool
    source: str

    def choice(self) -> Choice:
        where = f"{self.device}, {self.bits} bits, {self.role} {self.k or 'any'}x{self.n or 'any'}"
        reason = f"{self.by}: {where}: {self.source}"
        tile = (self.block, self.warps, self.stages, self.halves, self.flatten, self.drawn_once)
        return Choice(self.by, *tile, reason)


@functools.cache
def rows() -> tuple[Row, ...]:
    """The committed table."""
    return tuple(Row(**{**row, "block": tuple(row["block"])}) for row in json.loads(TABLE.read_text()))


_forced: Choice | None = None


@contextlib.contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Every GEMM inside runs like this: to measure, compile and test what the table does not choose."""
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def choose(
    role: str, device: torch.device, dtype: torch.dtype, k: int, n: int, *, dropout: bool = False
) -> Choice:  # fmt: skip
    """The row of a GEMM: its own shape's, else the one of any shape, on the newest device that is not newer."""
    return _forced or lookup(role, target(device), 8 * dtype.itemsize, k, n, dropout)


@functools.cache
def lookup(role: str, device: str, bits: int, k: int, n: int, dropout: bool) -> Choice:
    """`choose` for a device by name, which need not be here."""
    if role not in ROLES:
        raise ValueError(f"kernels.table: role must be one of {', '.join(ROLES)}, got {role!r}.")
    fits = [
        row
        for row in rows()
        if (row.device, row.bits, row.role, row.dropout) == (device, bits, role, dropout)
        and row.k in (0, k)
        and row.n in (0, n)
    ]
    if not fits:
        raise LookupError(f"kernels.table: {TABLE.name} has no row for {role} on {device} with {bits}-bit operands.")
    return max(fits, key=lambda row: (row.k > 0, row.n > 0)).choice()


@functools.cache
def target(device: torch.device) -> str:
    """The device as the table names it: the newest it has that the device can run."""
    if device.type != "cuda":
        return "interpreter"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


@functools.cache
def programs(device: torch.device) -> int:
    """Persistent programs that fill a device; three in the interpreter, so that tests see a program's second tile."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def check_size(rows: int, columns: int) -> None:
    """Kernels count elements in 32 bits, which spares them a register for each; blocks of pairs are cut accordingly."""
    if rows * columns >= 2**31:
        raise ValueError(
            f"carzero.kernels: a block of {rows} rows of {columns} columns has 2**31 elements or more, which the "
            "kernels do not count to; give a smaller tile_pairs."
        )
