"""Cross-attention of many queries to the few rows of each memory: forward, and head-averaged maps.

A memory's keys and values are shared by all its queries. Up to `attention_table` many rows a program owns one
(memory, head), holds its keys and values, and streams the queries past them: a whole row of scores is there at once,
so softmax needs no running maximum and the product with the values no rescaling. Beyond, a program owns a tile of
queries and streams the rows, with online softmax.

Equivalent to, for each memory m and head h of width K, in float32::

    s = scale * q[:, h] @ k[m, :, h].T + log(count[m])        # 0 rows: -inf
    a = softmax(s)                                            # of no row at all: 0
    out[m, :, h] = (a * dropout) @ v[m, :, h]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_call import Call, splits
from .attention_lanes import kept_lanes
from .attention_table import MAPS, forward_tiles
from .attention_tiles import (
    LN2,
    LOG2E,
    add_weighed,
    biased,
    draw,
    inner,
    load_rows,
    multipliers,
    present,
    scaled,
    store_rows,
    zeros,
)
from .philox import Dropout

#: Sizes that change from call to call: no kernel is compiled again for one that 16 divides.
SIZES = ["queries", "rows", "threshold", "layer", "direction"]


@triton.jit(do_not_specialize=SIZES)
def forward_whole(
    q, k, v, count, out, lse, lanes, seed, memory_index, query_index, queries, rows, q_memory, kv_memory, count_memory,
    index_memory, factor, threshold, keep_scale, layer, direction,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, Q_ROW: tl.constexpr, KV_ROW: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, DROPOUT: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid ``(m * HEADS, splits)``: a program owns a (memory, head) and every splits-th tile of its queries."""
    at = tl.program_id(0)
    m = (at // HEADS).to(tl.int64)
    h = at % HEADS
    q += m * q_memory + h * WIDTH
    k += m * kv_memory + h * WIDTH
    v += m * kv_memory + h * WIDTH
    out += m * queries * (HEADS * WIDTH) + h * WIDTH
    lse += at.to(tl.int64) * queries
    if COUNT:
        count += m * count_memory
    if DROPOUT:
        memory_index += m
        query_index += m * index_memory
        if AHEAD:
            lanes += at.to(tl.int64) * queries * rows
    there = present(count, 0, rows, ROWS, COUNT)
    keys = load_rows(k, there, KV_ROW, ROWS, WIDTHS, WIDTH)
    values = load_rows(v, there, KV_ROW, ROWS, WIDTHS, WIDTH)
    for start in tl.range(tl.program_id(1) * QUERIES, queries, QUERIES * tl.num_programs(1)):
        row = start + tl.arange(0, QUERIES)
        live = row < queries
        x = load_rows(q + tl.cast(start, tl.int64) * Q_ROW, live, Q_ROW, QUERIES, WIDTHS, WIDTH)
        if DROPOUT:
            drawn = draw(
                lanes, seed, memory_index, query_index, start, live, 0, rows, layer, direction, h, threshold, QUERIES,
                ROWS, AHEAD,
            )  # fmt: skip
        scores = biased(inner(x, keys, QUERIES, ROWS, PRECISION), factor, count, 0, rows, ROWS, COUNT)
        top = tl.max(scores, 1)
        # no row at all: exp2(-inf - 0) = 0
        top = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp2(scores - top[:, None])
        total = tl.sum(weights, 1)
        # compared with 0, so that NaN stays NaN
        none = total == 0.0
        total = tl.where(none, 1.0, total)
        tl.store(lse + row, tl.where(none, float("inf"), (top + tl.log2(total)) * LN2), mask=live)
        if DROPOUT:
            weights *= multipliers(drawn, count, 0, rows, keep_scale, QUERIES, ROWS, COUNT, AHEAD)
        weights = weights.to(q.dtype.element_ty)
        inverse = tl.where(none, 0.0, 1.0 / total)[:, None]
        result = add_weighed(zeros(QUERIES, WIDTHS, False), weights, values, PRECISION)
        store_rows(
            out + tl.cast(start, tl.int64) * (HEADS * WIDTH), live, result, inverse, HEADS * WIDTH, QUERIES, WIDTHS,
            WIDTH,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_online(
    q, k, v, count, out, lse, lanes, seed, memory_index, query_index, queries, rows, q_memory, kv_memory, count_memory,
    index_memory, factor, threshold, keep_scale, layer, direction,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, Q_ROW: tl.constexpr, KV_ROW: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, DROPOUT: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid ``(m * HEADS, tiles of queries)``: a program owns a tile of queries and streams the memory's rows."""
    at = tl.program_id(0)
    m = (at // HEADS).to(tl.int64)
    h = at % HEADS
    start = tl.program_id(1) * QUERIES
    row = start + tl.arange(0, QUERIES)
    live = row < queries
    k += m * kv_memory + h * WIDTH
    v += m * kv_memory + h * WIDTH
    if COUNT:
        count += m * count_memory
    if DROPOUT:
        memory_index += m
        query_index += m * index_memory
        if AHEAD:
            lanes += at.to(tl.int64) * queries * rows
    x = load_rows(
        q + m * q_memory + h * WIDTH + tl.cast(start, tl.int64) * Q_ROW, live, Q_ROW, QUERIES, WIDTHS, WIDTH
    )  # fmt: skip
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.full([QUERIES], 0.0, tl.float32)
    result = zeros(QUERIES, WIDTHS, False)
    for first in tl.range(0, rows, ROWS):
        there = present(count, first, rows, ROWS, COUNT)
        keys = load_rows(k + tl.cast(first, tl.int64) * KV_ROW, there, KV_ROW, ROWS, WIDTHS, WIDTH)
        if DROPOUT:
            drawn = draw(
                lanes, seed, memory_index, query_index, start, live, first, rows, layer, direction, h, threshold,
                QUERIES, ROWS, AHEAD,
            )  # fmt: skip
        scores = biased(inner(x, keys, QUERIES, ROWS, PRECISION), factor, count, first, rows, ROWS, COUNT)
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = total * shrink + tl.sum(weights, 1)
        top = higher
        if DROPOUT:
            weights *= multipliers(drawn, count, first, rows, keep_scale, QUERIES, ROWS, COUNT, AHEAD)
        values = load_rows(v + tl.cast(first, tl.int64) * KV_ROW, there, KV_ROW, ROWS, WIDTHS, WIDTH)
        result = add_weighed(scaled(result, shrink[:, None]), weights.to(q.dtype.element_ty), values, PRECISION)
    none = total == 0.0
    total = tl.where(none, 1.0, total)
    sums = tl.where(none, float("inf"), (top + tl.log2(total)) * LN2)
    tl.store(lse + at.to(tl.int64) * queries + row, sums, mask=live)
    inverse = tl.where(none, 0.0, 1.0 / total)[:, None]
    store_rows(
        out + (m * queries + start) * (HEADS * WIDTH) + h * WIDTH, live, result, inverse, HEADS * WIDTH, QUERIES,
        WIDTHS, WIDTH,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def average_maps(
    q, k, count, lse, maps, queries, rows, q_memory, kv_memory, count_memory, factor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, Q_ROW: tl.constexpr, KV_ROW: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid ``(m, tiles of queries, tiles of rows)``: softmax weights before dropout, averaged over heads in order."""
    m = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * QUERIES
    first = tl.program_id(2) * ROWS
    row = start + tl.arange(0, QUERIES)
    column = first + tl.arange(0, ROWS)
    live = row < queries
    if COUNT:
        count += m * count_memory
    there = present(count, first, rows, ROWS, COUNT)
    q += m * q_memory + tl.cast(start, tl.int64) * Q_ROW
    k += m * kv_memory + tl.cast(first, tl.int64) * KV_ROW
    lse += m * HEADS * queries
    total = tl.full([QUERIES, ROWS], 0.0, tl.float32)
    for h in tl.range(0, HEADS):
        x = load_rows(q + h * WIDTH, live, Q_ROW, QUERIES, WIDTHS, WIDTH)
        keys = load_rows(k + h * WIDTH, there, KV_ROW, ROWS, WIDTHS, WIDTH)
        scores = biased(inner(x, keys, QUERIES, ROWS, PRECISION), factor, count, first, rows, ROWS, COUNT)
        sums = tl.load(lse + tl.cast(h, tl.int64) * queries + row, mask=live, other=float("inf"))
        total += tl.exp2(scores - (sums * LOG2E)[:, None])
    where = maps + (m * queries + row.to(tl.int64)[:, None]) * rows + column[None, :]
    tl.store(where, total / HEADS, mask=live[:, None] & (column < rows)[None, :])


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    scale: float,
    count: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    maps: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Attention of Q queries to the P rows of each of m memories; see the top of this file.

    Args:
        q: ``[m, Q, D]``, or ``[1, Q, D]`` for the same queries in all memories; float32, bfloat16, float16.
        k, v: ``[m, P, D]`` in q's dtype, of equal strides: views of ``[m, P, L, 2, D]``.
        heads: H; the width of a head, D / H, is a multiple of 16.
        scale: of the scores, ``1 / sqrt(D / H)``.
        count: int32 ``[m, P]``, how many original rows each stands for, 0 for an absent one, which may hold NaN.
        out: ``[m, Q, D]`` contiguous, q's dtype, to write to.
        lse: float32 ``[m, H, Q]`` contiguous, to write to: log of the sum of exp(scores); inf for a memory of no row.
        maps: float32 ``[m, Q, P]`` contiguous, or None: gets the weights before dropout, averaged over heads.
        dropout: of the weights, or None.

    Returns:
        `out`.
    """
    call = Call.of("attention_forward", q, k, v, heads, scale, count, dropout)
    m, queries, rows = call.shape
    out = q.new_empty(m, queries, q.shape[-1]) if out is None else out
    lse = q.new_empty(m, heads, queries, dtype=torch.float32) if lse is None else lse
    call.check_contiguous(out=out, lse=lse, **({} if maps is None else {"maps": maps}))
    if m == 0 or queries == 0:
        return out
    tiles = forward_tiles(call.target, q.dtype, call.width, rows, count=count is not None)
    steps = triton.cdiv(queries, tiles.queries)
    kernel = forward_whole if tiles.whole else forward_online
    kernel[(m * heads, splits(q.device, m * heads, steps) if tiles.whole else steps)](
        q, k, v, count, out, lse, kept_lanes(call), *call.sizes(), **call.constants(tiles), **call.drops(),
        **tiles.options(),
    )  # fmt: skip
    if maps is not None:
        tiles = MAPS[q.dtype.itemsize]
        average_maps[(m, triton.cdiv(queries, tiles.queries), triton.cdiv(rows, tiles.rows))](
            q, k, count, lse, maps, queries, rows, call.q_memory, k.stride(0), call.count_memory, call.factor,
            **call.constants(tiles), **tiles.options(),
        )  # fmt: skip
    return out
