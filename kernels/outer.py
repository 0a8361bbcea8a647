"""Weight gradients: ``d_weight += dy^T x`` over the rows of a block, without atomics.

An output of a few hundred columns has too few tiles for a large GPU, so the rows are split; each part is summed by its
own program into its own place, and the parts are added in order. The bias's gradient, the sum of dy over rows, is made
by the programs of the first column of tiles, which read dy anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .table import Choice, check_size, choose, programs

RUNTIME = ("rows", "part_rows")


@triton.jit(do_not_specialize=RUNTIME)
def outer(
    dy, x, part, bias_part, rows, part_rows, dy_stride, x_stride,
    N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``part[s] = dy[rows of s]^T x[rows of s]`` ``[N, K]`` float32, and the sums of dy ``bias_part[s]`` ``[N]``.

    Args:
        part_rows: rows of a part, a multiple of BK; part s is `program_id(1)`.
    """
    tiles_k: tl.constexpr = (K + BN - 1) // BN
    n = tl.program_id(0) // tiles_k * BM + tl.arange(0, BM)
    tile = tl.program_id(0) % tiles_k
    k = tile * BN + tl.arange(0, BN)
    s = tl.program_id(1)
    n_ok, k_ok = n < N, k < K
    acc = tl.zeros((BM, BN), tl.float32)
    sums = tl.zeros((BM,), tl.float32)
    end = tl.minimum((s + 1) * part_rows, rows)
    for start in range(s * part_rows, end, BK):
        row = start + tl.arange(0, BK)
        ok = row < end
        left = tl.load(dy + row[None, :] * dy_stride + n[:, None], mask=ok[None, :] & n_ok[:, None], other=0.0)
        right = tl.load(x + row[:, None] * x_stride + k[None, :], mask=ok[:, None] & k_ok[None, :], other=0.0)
        acc = tl.dot(left, right, acc, input_precision="ieee")
        sums += tl.sum(left.to(tl.float32), 1)
    s = s.to(tl.int64)
    tl.store(part + (s * N + n[:, None]) * K + k[None, :], acc, mask=n_ok[:, None] & k_ok[None, :])
    tl.store(bias_part + s * N + n, sums, mask=n_ok & (tile == 0))


def add_outer(d_weight: Tensor, d_bias: Tensor, dy: Tensor, x: Tensor) -> None:
    """``d_weight += dy^T x`` and ``d_bias += sum of dy``, float32, the same bits on every run.

    Args:
        d_weight: ``[N, K]``; d_bias ``[N]``.
        dy: ``[R, N]``; x ``[R, K]``: the GEMM dtype, rows contiguous.
    """
    (rows, n), k = dy.shape, x.shape[1]
    if rows == 0:
        return
    choice = choose("outer", dy.device, dy.dtype, n, k)
    if choice.by == "cublas":
        if dy.dtype == d_weight.dtype:
            d_weight.addmm_(dy.T, x)
        else:
            d_weight += dy.T @ x
        d_bias += dy.sum(0, dtype=torch.float32)
        return
    part, bias_part = outer_parts(dy, x, choice)
    # sums over the first axis go in order, one output element a thread
    d_weight += part.sum(0)
    d_bias += bias_part.sum(0)


def outer_parts(dy: Tensor, x: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """The parts ``[S, N, K]`` and ``[S, N]`` of `add_outer`, which are still to be added up."""
    (rows, n), k = dy.shape, x.shape[1]
    check_size(rows, max(n, k))
    assert dy.stride(1) == 1
    assert x.stride(1) == 1
    bm, bn, bk = choice.block
    tiles = triton.cdiv(n, bm) * triton.cdiv(k, bn)
    # about two programs a multiprocessor, but no part of less than eight steps
    parts = max(1, min(2 * programs(dy.device) // tiles, triton.cdiv(rows, 8 * bk)))
    part_rows = triton.cdiv(triton.cdiv(rows, parts), bk) * bk
    parts = triton.cdiv(rows, part_rows)
    part = dy.new_empty(parts, n, k, dtype=torch.float32)
    bias_part = dy.new_empty(parts, n, dtype=torch.float32)
    arguments = {
        "dy": dy, "x": x, "part": part, "bias_part": bias_part, "rows": rows, "part_rows": part_rows,
        "dy_stride": dy.stride(0), "x_stride": x.stride(0), "N": n, "K": k, "BM": bm, "BN": bn, "BK": bk,
    }  # fmt: skip
    launch(outer, (tiles, parts), arguments, num_warps=choice.warps, num_stages=choice.stages)
    return part, bias_part
