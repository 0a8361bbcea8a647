"""The GEMMs, their epilogues and the kernels of rows as the launchers run them at the published sizes, for `aot`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from . import gemm, outer, rows, table
from .aot import SHARED, TYPES, Case, case_of, empty, launches
from .epilogue import State
from .philox import Dropout

_WIDTH, _EPS = 768, 1e-5
#: Pairs of a block, and its grid of memories and queries.
_PAIRS, _GRID = 16384, (64, 256)
#: Compiled in every run of the tests on every device: the epilogue that needs most registers; and on Hopper the widest
#: tile.
_OFTEN = (("branch", 1024, 768, True),)
_OFTEN_ON_HOPPER = (*_OFTEN, ("norm", 768, 1024, False))


def aot_cases() -> Iterator[Case]:
    """Every row of the table with a shape of its own, by Triton whoever is chosen; then kernels that have no row."""
    for target in SHARED:
        for dtype in (torch.bfloat16, torch.float16):
            for row in table.rows():
                if row.device == f"sm_{target}" and row.bits == 16 and row.k:
                    yield from _row(row, target, dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield from _others(target, dtype)


def _row(row: table.Row, target: int, dtype: torch.dtype) -> Iterator[Case]:
    key = (row.role, row.k, row.n, row.dropout)
    often = dtype == torch.bfloat16 and key in (_OFTEN_ON_HOPPER if target == 90 else _OFTEN)
    width = table.lookup("branch", row.device, row.bits, _WIDTH, _WIDTH, row.dropout).width
    with table.forced(replace(row.choice(), by="triton")):
        launched = launches(lambda: _call(row, dtype, width))
    what = f"{row.role} {row.k}x{row.n}, {TYPES[dtype]}, tile {'x'.join(map(str, row.block))}"
    what += (", halves" if row.halves else "") + (", dropout" if row.dropout else "")
    for launch in launched:
        yield case_of(launch, what, target, tensor_cores=True, representative=often)


def _call(row: table.Row, dtype: torch.dtype, width: int) -> None:
    """The launcher of a row, on tensors that hold nothing."""
    k, n, dropout = row.k, row.n, _dropout() if row.dropout else None
    bias, a, weight = empty(n), empty(_PAIRS, k, dtype=dtype), empty(n, k, dtype=dtype)
    if row.role == "norm":
        gemm.normed(_state(k, dtype, width), weight, bias, bias, eps=_EPS, relu=n != k, dropout=dropout)
    elif row.role == "affine":
        gemm.affine(a, weight, bias, relu=True, dropout=dropout)
    elif row.role == "branch":
        gemm.add_branch(_state(n, dtype, width), a, weight, bias, eps=_EPS, emit=True, dropout=dropout)
    elif row.role == "outer":
        outer.add_outer(empty(k, n), empty(k), a, empty(_PAIRS, n, dtype=dtype))
    else:
        gate = empty(_PAIRS, n, dtype=dtype) if row.role == "pull_gated" else None
        gemm.pull(a, weight.T.contiguous(), gate=gate)


def _others(target: int, dtype: torch.dtype) -> Iterator[Case]:
    d, dropout = _WIDTH, _dropout()
    a, weight, vector, t = empty(_PAIRS, d, dtype=dtype), empty(d, d, dtype=dtype), empty(d), empty(_PAIRS, d)
    state = _state(d, dtype, d)
    sums = empty(8, 2, d)
    calls: dict[str, Callable[[], object]] = {
        "branch": lambda: gemm.add_branch(state, a, weight, vector, eps=_EPS, emit=True, dropout=dropout),
        "norm": lambda: gemm.normed(state, weight, vector, vector, eps=_EPS, relu=True, dropout=dropout),
        "memory": lambda: rows.norm(a, vector, vector, dtype, eps=_EPS, present=empty(_PAIRS, dtype=torch.int32)),
        "head": lambda: rows.norm_dot(t, vector, vector, weight[0], weight[0, :1], eps=_EPS, dropout=dropout),
        "layer": lambda: rows.norm_backward(a, t, vector, vector, sums, eps=_EPS, dt=t, y=a, g=a, g_dropout=dropout),
    }
    cublas = replace(table.lookup("branch", f"sm_{target}", 32, d, d, True), by="cublas")
    for name, call in calls.items():
        with table.forced(cublas):
            for launch in launches(call):
                yield case_of(launch, f"{name}, {TYPES[dtype]}", target, tensor_cores=False, representative=False)


def _state(d: int, dtype: torch.dtype, width: int) -> State:
    partial = empty(_PAIRS, -(-d // width), 2)
    return State(empty(_PAIRS, d), empty(_PAIRS, d, dtype=dtype), empty(_PAIRS), partial, width)


def _dropout() -> Dropout:
    m, q = _GRID
    index = empty(m, dtype=torch.int64), empty(1, q, dtype=torch.int64)
    return Dropout(empty(1, dtype=torch.int64), 6554, 65536 / 58982, 3, 1, *index, 98)
