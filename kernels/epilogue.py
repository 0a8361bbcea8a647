"""What follows a matrix product in the decoder, on a tile that is still in registers.

In this order, each a compile-time choice::

    value = (acc - mean * column_sum) * rstd      # NORM: LayerNorm of the operand, after the product
    value = value + bias                          # BIAS
    value = max(value, 0)                         # RELU
    value = value * (gate > 0) * gate_scale       # GATE: backward of ReLU and of its dropout
    value = value * mask * scale                  # DROPOUT
    t     = t + value                             # RESIDUAL: float32 stream; with EMIT the next LayerNorm's inputs

LayerNorm after the product: with gamma folded into W, ``LN(t) W^T = rstd (t W'^T - mean sum_k W') + W beta``. The
operand is not t but ``x = t - shift`` in 16 bits, where shift is the row's mean before this branch was added. So the
mean that remains is that of one branch, and neither the rounding of x nor the subtraction above cancels where a row's
mean is large against its deviation. A tile leaves its sum and its squared deviations from its own mean; whoever needs
the statistics combines the tiles in order (Chan), so they are the same on every run.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .philox import drawn_once, kept_bits, spread_bits


class State(NamedTuple):
    """The residual stream of R pairs and what the next LayerNorm needs of it.

    Args:
        t: ``[R, D]`` float32.
        x: ``[R, D]`` t - shift in the GEMM dtype; None where no LayerNorm by epilogue follows, as all below.
        shift: ``[R]`` float32.
        partial: ``[R, tiles, 2]`` float32: sum of ``t - shift`` and squared deviations from its mean, by column tile.
        width: columns of a tile; the last may have fewer.
    """

    t: Tensor
    x: Tensor | None = None
    shift: Tensor | None = None
    partial: Tensor | None = None
    width: int = 0


@triton.jit
def statistics(partial, row, ok, eps, D: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr):
    """Mean less shift, and 1 / sqrt(variance + eps), of rows: the tiles' partial results, combined in order."""
    place = partial + row * (2 * TILES)
    total = tl.load(place, mask=ok, other=0.0)
    for j in tl.static_range(1, TILES):
        total += tl.load(place + 2 * j, mask=ok, other=0.0)
    mean = total / D
    squares = mean * 0.0
    for j in tl.static_range(TILES):
        n = WIDTH if (j + 1) * WIDTH <= D else D - j * WIDTH
        away = tl.load(place + 2 * j, mask=ok, other=0.0) / n - mean
        squares += tl.load(place + 2 * j + 1, mask=ok, other=0.0) + n * away * away
    return mean, 1.0 / tl.sqrt(squares / D + eps)


@triton.jit
def pair_indices(row, ok, memory_index, query_index, queries, query_stride):
    """Global memory and query index of rows of a block ``[m, q]``."""
    m = row // queries
    memory = tl.load(memory_index + m, mask=ok, other=0)
    query = tl.load(query_index + m * query_stride + row % queries, mask=ok, other=0)
    return memory, query


@triton.jit
def drop(
    value, row, row_ok, column, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DRAWN_ONCE: tl.constexpr,
):  # fmt: skip
    """`value` ``[ROWS, COLUMNS]``, whose first column is `column`, a multiple of 8, under its dropout mask.

    DRAWN_ONCE: for products of HMMA and HGMMA, of whose layout four threads share eight columns.
    """
    memory, query = pair_indices(row, row_ok, memory_index, query_index, queries, query_stride)
    block = column // 8 + tl.arange(0, COLUMNS // 8)
    bits = kept_bits(tl.load(seed), word, memory[:, None], query[:, None], block[None, :], threshold)
    if DRAWN_ONCE:
        bits = drawn_once(bits)
    return tl.where(spread_bits(bits, ROWS, COLUMNS // 8), value * scale, 0.0)


@triton.jit
def finish(
    acc, row, tile, rows,
    out, bias, column_sum, partial, gate, gate_scale, t, shift, t_out, x_out, shift_out, partial_out, state_rows, eps,
    seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
    K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES_IN: tl.constexpr,
    WIDTH_IN: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, GATE: tl.constexpr,
    DROPOUT: tl.constexpr, DRAWN_ONCE: tl.constexpr, RESIDUAL: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """The epilogue of column tile `tile` of the float32 products `acc` ``[ROWS, COLUMNS]``.

    Args:
        row: int32 ``[ROWS]``; those from `rows` on are nobody's. No tensor has 2**31 elements (`table.check_size`).
        partial, shift, t: of the `State` that is normalised or added to. It has `state_rows` rows; row r is its row
            ``r % state_rows``: before the first layer all memories share their queries' rows.
    """
    column = tile * COLUMNS
    col = column + tl.arange(0, COLUMNS)
    row_ok, col_ok = row < rows, col < N
    ok = row_ok[:, None] & col_ok[None, :]
    place = row[:, None] * N + col[None, :]
    value = acc
    if NORM:
        mean, rstd = statistics(partial, row, row_ok, eps, K, WIDTH_IN, TILES_IN)
        sums = tl.load(column_sum + col, mask=col_ok, other=0.0)
        value = (value - mean[:, None] * sums[None, :]) * rstd[:, None]
    if BIAS:
        value += tl.load(bias + col, mask=col_ok, other=0.0)[None, :]
    if RELU:
        value = tl.maximum(value, 0.0)
    if GATE:
        passed = tl.load(gate + place, mask=ok, other=0.0).to(tl.float32) > 0.0
        value = tl.where(passed, value * gate_scale, 0.0)
    if DROPOUT:
        value = drop(
            value, row, row_ok, column, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
            ROWS, COLUMNS, DRAWN_ONCE,
        )  # fmt: skip
    if RESIDUAL:
        source = row % state_rows
        value += tl.load(t + source[:, None] * N + col[None, :], mask=ok, other=0.0)
        tl.store(t_out + place, value, mask=ok)
        if EMIT:
            mean, _ = statistics(partial, source, row_ok, eps, N, WIDTH_IN, TILES_IN)
            centre = tl.load(shift + source, mask=row_ok, other=0.0) + mean
            x = tl.where(ok, value - centre[:, None], 0.0)
            tl.store(x_out + place, x.to(x_out.dtype.element_ty), mask=ok)
            total = tl.sum(x, 1)
            own = total / tl.maximum(tl.minimum(N - column, COLUMNS), 1)
            away = tl.where(col_ok[None, :], x - own[:, None], 0.0)
            tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
            slot = partial_out + (row * tiles + tile) * 2
            # the last half tile may lie beyond the end
            own_ok = row_ok & (tile < tiles)
            tl.store(slot, total, mask=own_ok)
            tl.store(slot + 1, tl.sum(away * away, 1), mask=own_ok)
            tl.store(shift_out + row, centre, mask=row_ok & (tile == 0))
    else:
        tl.store(out + place, value.to(out.dtype.element_ty), mask=ok)
