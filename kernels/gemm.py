"""Matrix products with the decoder's epilogues, in persistent programs; and the epilogues alone, behind cuBLAS.

Both kernels take the same arguments from `epilogue.finish`; which one runs is the table's choice (`kernels.table`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import State, finish
from .launch import launch
from .philox import Dropout
from .table import Choice, check_size, choose, programs

#: Numbers that change from call to call: a kernel compiled for one value of them serves all.
RUNTIME = ("rows", "depth", "state_rows", "word", "threshold", "queries", "query_stride")


@triton.jit(do_not_specialize=RUNTIME)
def gemm(
    a, b, rows, depth, a_stride, b_n, b_k,
    out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out, state_rows, eps,
    seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
    K: tl.constexpr, N: tl.constexpr, TILES_IN: tl.constexpr, WIDTH_IN: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, GATE: tl.constexpr, DROPOUT: tl.constexpr, RESIDUAL: tl.constexpr,
    EMIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HALVES: tl.constexpr,
    FLATTEN: tl.constexpr, DRAWN_ONCE: tl.constexpr,
):  # fmt: skip
    """``finish(a [rows, K] @ b [K, N])``: each program takes every `num_programs`-th tile.

    A row of tiles follows each other, so that programs that run together share their rows of `a` in the L2 cache.
    """
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    k = tl.arange(0, BK)
    for index in tl.range(tl.program_id(0), tl.cdiv(rows, BM) * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        tile = index % tiles_n
        row = index // tiles_n * BM + tl.arange(0, BM)
        col = tile * BN + tl.arange(0, BN)
        # rows beyond the end read the first one: no mask in the loop, and nothing of theirs is stored
        a_at = a + tl.where(row < rows, row, 0)[:, None] * a_stride + k[None, :]
        # columns do not: as a run of addresses they can be loaded together where b_n is 1
        b_at = b + k[:, None] * b_k + col[None, :] * b_n
        acc = tl.zeros((BM, BN), tl.float32)
        # `depth` is K, at run time: unrolled, the loop's loads would need more registers
        for start in range(0, depth, BK):
            if K % BK == 0 and N % BN == 0:
                left, right = tl.load(a_at), tl.load(b_at)
            else:
                k_ok = start + k < K
                left = tl.load(a_at, mask=k_ok[None, :], other=0.0)
                right = tl.load(b_at, mask=k_ok[:, None] & (col < N)[None, :], other=0.0)
            acc = tl.dot(left, right, acc, input_precision="ieee")
            a_at += BK
            b_at += BK * b_k
        if HALVES:
            # what the epilogue loads and computes of one half need not be in registers with the other's
            left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
            finish(
                left, row, 2 * tile, rows,
                out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out,
                state_rows, eps, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
                K, N, BM, BN // 2, TILES_IN, WIDTH_IN, NORM, BIAS, RELU, GATE, DROPOUT, DRAWN_ONCE, RESIDUAL, EMIT,
            )  # fmt: skip
            finish(
                right, row, 2 * tile + 1, rows,
                out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out,
                state_rows, eps, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
                K, N, BM, BN // 2, TILES_IN, WIDTH_IN, NORM, BIAS, RELU, GATE, DROPOUT, DRAWN_ONCE, RESIDUAL, EMIT,
            )  # fmt: skip
        else:
            finish(
                acc, row, tile, rows,
                out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out,
                state_rows, eps, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
                K, N, BM, BN, TILES_IN, WIDTH_IN, NORM, BIAS, RELU, GATE, DROPOUT, DRAWN_ONCE, RESIDUAL, EMIT,
            )  # fmt: skip


@triton.jit(do_not_specialize=[name for name in RUNTIME if name != "depth"])
def finish_product(
    product, rows,
    out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out, state_rows, eps,
    seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
    K: tl.constexpr, N: tl.constexpr, TILES_IN: tl.constexpr, WIDTH_IN: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, GATE: tl.constexpr, DROPOUT: tl.constexpr, RESIDUAL: tl.constexpr,
    EMIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``finish(product [rows, N])``, of whole rows: BN is the power of two from N on."""
    col = tl.arange(0, BN)
    for index in tl.range(tl.program_id(0), tl.cdiv(rows, BM), tl.num_programs(0)):
        row = index * BM + tl.arange(0, BM)
        ok = (row < rows)[:, None] & (col < N)[None, :]
        acc = tl.load(product + row[:, None] * N + col[None, :], mask=ok, other=0.0).to(tl.float32)
        finish(
            acc, row, 0, rows,
            out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out,
            state_rows, eps, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
            K, N, BM, BN, TILES_IN, WIDTH_IN, NORM, BIAS, RELU, GATE, DROPOUT, False, RESIDUAL, EMIT,
        )  # fmt: skip


def normed(
    state: State, weight: Tensor, column_sum: Tensor, bias: Tensor, *, eps: float, relu: bool = False,
    dropout: Dropout | None = None, site: int = 0, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``drop(relu(LN(t) W^T + b))`` ``[R, N]`` in the GEMM dtype.

    Args:
        weight: ``[N, K]`` with gamma folded in; `column_sum` float32 ``[N]`` of it; `bias` float32 ``[N]`` with beta.
        dropout, site: masks of the result, or None.
        out: ``[R, N]`` to write to, or None for a new tensor.
    """
    assert state.x is not None
    return _product(
        state.x, weight, "norm", state=state, column_sum=column_sum, bias=bias, eps=eps, relu=relu, dropout=dropout,
        site=site, out=out,
    )  # fmt: skip


def affine(
    a: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, dropout: Dropout | None = None, site: int = 0
) -> Tensor:
    """``drop(relu(a W^T + b))`` ``[R, N]`` in the GEMM dtype."""
    return _product(a, weight, "affine", bias=bias, relu=relu, dropout=dropout, site=site)


def add_branch(
    state: State, a: Tensor, weight: Tensor, bias: Tensor, *, eps: float, emit: bool, dropout: Dropout | None = None,
    site: int = 0, out: Tensor | None = None,
) -> State:  # fmt: skip
    """``t + drop(a W^T + b)``.

    Args:
        state: of R rows, or of fewer that repeat.
        emit: whether a `normed` follows: it needs the new state's x and statistics.
        out: float32 ``[R, N]`` to hold the new t, or None for a new tensor.
    """
    return _product(
        a, weight, "branch", state=state, bias=bias, eps=eps, emit=emit, dropout=dropout, site=site, out=out
    )


def add_finished(
    state: State, branch: Tensor, dtype: torch.dtype, *, eps: float, dropout: Dropout | None = None, site: int = 0
) -> State:
    """``t + drop(branch)`` for a branch ``[R, D]`` that exists; x of the new state in `dtype`."""
    n = branch.shape[1]
    arguments, result = _arguments(
        branch, n, n, triton.next_power_of_2(n), dtype, state=state, eps=eps, emit=True, dropout=dropout, site=site
    )
    _finish(branch, arguments)
    return result


def pull(dy: Tensor, weight: Tensor, *, gate: Tensor | None = None, gate_scale: float = 1.0) -> Tensor:
    """Gradient of x ``[R, K]`` for ``y = x W^T``, in the GEMM dtype.

    Args:
        weight: ``[N, K]`` as in the forward.
        gate: ``[R, K]`` hidden rows after ReLU and dropout: the gradient passes where they are above 0, scaled.
    """
    if gate is None:
        return _product(dy, weight.T, "pull")
    return _product(dy, weight.T, "pull_gated", gate=gate, gate_scale=gate_scale)


def _product(a: Tensor, weight: Tensor, role: str, **epilogue: Any) -> Any:
    k, n = a.shape[1], weight.shape[0]
    choice = choose(role, a.device, a.dtype, k, n, dropout=epilogue.get("dropout") is not None)
    if choice.by == "cublas":
        product = a @ weight.T
        if role == "pull":
            return product
        arguments, result = _arguments(a, k, n, triton.next_power_of_2(n), a.dtype, **epilogue)
        _finish(product, arguments)
        return result
    arguments, result = _arguments(a, k, n, choice.width, a.dtype, **epilogue)
    _multiply(a, weight, arguments, choice)
    return result


def _multiply(a: Tensor, weight: Tensor, arguments: dict[str, Any], choice: Choice) -> None:
    (rows, k), n = a.shape, weight.shape[0]
    assert a.stride(1) == 1
    check_size(rows, max(n, k))
    if rows == 0:
        return
    bm, bn, bk = choice.block
    grid = min(triton.cdiv(rows, bm) * triton.cdiv(n, bn), programs(a.device))
    product = {
        "a": a, "b": weight, "rows": rows, "depth": k, "a_stride": a.stride(0), "b_n": weight.stride(0),
        "b_k": weight.stride(1), "BM": bm, "BN": bn, "BK": bk, "HALVES": choice.halves, "FLATTEN": choice.flatten,
        "DRAWN_ONCE": choice.drawn_once,
    }  # fmt: skip
    launch(gemm, (grid,), product | arguments, num_warps=choice.warps, num_stages=choice.stages)


def _finish(product: Tensor, arguments: dict[str, Any]) -> None:
    rows, n = product.shape
    assert product.is_contiguous()
    check_size(rows, n)
    if rows == 0:
        return
    bn = triton.next_power_of_2(n)
    bm = max(1, 4096 // bn)
    grid = min(triton.cdiv(rows, bm), 8 * programs(product.device))
    launch(finish_product, (grid,), {"product": product, "rows": rows, "BM": bm, "BN": bn} | arguments, num_warps=4)


def _arguments(
    a: Tensor, k: int, n: int, width: int, dtype: torch.dtype, *, state: State | None = None,
    column_sum: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0, relu: bool = False,
    dropout: Dropout | None = None, site: int = 0, gate: Tensor | None = None, gate_scale: float = 1.0,
    emit: bool | None = None, out: Tensor | None = None,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """What both kernels are given, by name, and what they will have written.

    Args:
        a: ``[R, ...]`` on the device.
        width: columns of a tile of the result.
        dtype: of the result, or of the new state's x.
        emit: None where nothing is added to the state.
        out: to write to, or None.
    """
    rows, adds = a.shape[0], emit is not None
    if out is None:
        out = a.new_empty(rows, n, dtype=torch.float32 if adds else dtype)
    assert out.is_contiguous()
    new = State(out)
    if emit:
        tiles = triton.cdiv(n, width)
        x, shift, partial = out.new_empty(rows, n, dtype=dtype), out.new_empty(rows), out.new_empty(rows, tiles, 2)
        new = State(out, x, shift, partial, width)
    # the statistics of the old state: of what is normalised, or for the new state's shift
    old = state if state is not None and (emit or not adds) else State(out)
    arguments: dict[str, Any] = {
        "out": None if adds else out, "bias": bias, "column_sum": column_sum, "partial": old.partial, "gate": gate,
        "gate_scale": gate_scale, "t": state.t if adds and state is not None else None,
        "shift": old.shift if emit else None, "t_out": out if adds else None, "x_out": new.x, "shift_out": new.shift,
        "partial_out": new.partial, "state_rows": rows if state is None else state.t.shape[0], "eps": eps,
        "K": k, "N": n, "TILES_IN": 1 if old.partial is None else old.partial.shape[1], "WIDTH_IN": old.width,
        "NORM": column_sum is not None, "BIAS": bias is not None, "RELU": relu, "GATE": gate is not None,
        "DROPOUT": dropout is not None, "RESIDUAL": adds, "EMIT": bool(emit), **dropout_arguments(dropout, site),
    }  # fmt: skip
    return arguments, new if adds else out


def dropout_arguments(dropout: Dropout | None, site: int) -> dict[str, Any]:
    """The arguments of a kernel that draws masks, or that draws none."""
    if dropout is None:
        return {
            "seed": None, "memory_index": None, "query_index": None, "word": 0, "threshold": 0, "scale": 1.0,
            "queries": 1, "query_stride": 0,
        }  # fmt: skip
    query = dropout.query_index
    return {
        "seed": dropout.seed, "memory_index": dropout.memory_index, "query_index": query,
        "word": site | dropout.layer << 8 | dropout.direction << 16, "threshold": dropout.threshold,
        "scale": dropout.scale,
        "queries": query.shape[1], "query_stride": query.stride(0) if query.shape[0] > 1 else 0,
    }  # fmt: skip
