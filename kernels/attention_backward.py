"""Backward of the attention in `attention.py`: every gradient is owned by one program and written once, no atomics.

The softmax weights are made again from the forward's log-sum-exps. With a the weights, r the dropout multipliers::

    da = (do @ v.T) * r;  delta = sum(a * da) = sum(do * out);  ds = a * (da - delta)
    dv = (a * r).T @ do;  dk = scale * ds.T @ q;  dq = scale * ds @ k

Few rows (text memories without their padding): one program owns a (memory, head) and makes all three in one pass.
More rows: one pass owns tiles of queries, and one owns tiles of rows and makes the scores a second time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import SIZES
from .attention_call import Call
from .attention_lanes import kept_lanes
from .attention_table import backward_tiles
from .attention_tiles import (
    LOG2E,
    add_columns,
    add_transposed,
    add_weighed,
    biased,
    draw,
    inner,
    load_rows,
    multipliers,
    present,
    store_rows,
    zeros,
)
from .philox import Dropout


@triton.jit(do_not_specialize=SIZES)
def backward_rows(
    do, q, k, v, count, lse, delta, d_q, d_k, d_v, lanes, seed, memory_index, query_index, queries, rows, q_memory,
    kv_memory, count_memory, index_memory, factor, threshold, keep_scale, layer, direction, scale, d_kv_memory,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, Q_ROW: tl.constexpr, KV_ROW: tl.constexpr,
    D_KV_ROW: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, DROPOUT: tl.constexpr,
    AHEAD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid ``(m * HEADS, tiles of rows)``: a program owns a tile of keys and values and streams the queries.

    WHOLE: the tile is the memory's only one, so delta is at hand and d_q is made as well.
    """
    at = tl.program_id(0)
    m = (at // HEADS).to(tl.int64)
    h = at % HEADS
    first = tl.program_id(1) * ROWS
    if COUNT:
        count += m * count_memory
    there = present(count, first, rows, ROWS, COUNT)
    skip = m * kv_memory + tl.cast(first, tl.int64) * KV_ROW + h * WIDTH
    keys = load_rows(k + skip, there, KV_ROW, ROWS, WIDTHS, WIDTH)
    values = load_rows(v + skip, there, KV_ROW, ROWS, WIDTHS, WIDTH)
    q += m * q_memory + h * WIDTH
    do += m * queries * (HEADS * WIDTH) + h * WIDTH
    d_q += m * queries * (HEADS * WIDTH) + h * WIDTH
    lse += at.to(tl.int64) * queries
    delta += at.to(tl.int64) * queries
    if DROPOUT:
        memory_index += m
        query_index += m * index_memory
        if AHEAD:
            lanes += at.to(tl.int64) * queries * rows
    dk = zeros(ROWS, WIDTHS, True)
    dv = zeros(ROWS, WIDTHS, True)
    for start in tl.range(0, queries, QUERIES):
        row = start + tl.arange(0, QUERIES)
        live = row < queries
        x = load_rows(q + tl.cast(start, tl.int64) * Q_ROW, live, Q_ROW, QUERIES, WIDTHS, WIDTH)
        skip = tl.cast(start, tl.int64) * (HEADS * WIDTH)
        grad = load_rows(do + skip, live, HEADS * WIDTH, QUERIES, WIDTHS, WIDTH)
        if DROPOUT:
            drawn = draw(
                lanes, seed, memory_index, query_index, start, live, first, rows, layer, direction, h, threshold,
                QUERIES, ROWS, AHEAD,
            )  # fmt: skip
        scores = biased(inner(x, keys, QUERIES, ROWS, PRECISION), factor, count, first, rows, ROWS, COUNT)
        sums = tl.load(lse + row, mask=live, other=float("inf"))
        weights = tl.exp2(scores - (sums * LOG2E)[:, None])
        da = inner(grad, values, QUERIES, ROWS, PRECISION)
        used = weights
        if DROPOUT:
            kept = multipliers(drawn, count, first, rows, keep_scale, QUERIES, ROWS, COUNT, AHEAD)
            used = weights * kept
            da *= kept
        if WHOLE:
            less = tl.sum(weights * da, 1)
        else:
            less = tl.load(delta + row, mask=live, other=0.0)
        ds = (weights * (da - less[:, None])).to(q.dtype.element_ty)
        dv = add_transposed(dv, grad, used.to(q.dtype.element_ty), PRECISION)
        dk = add_transposed(dk, x, ds, PRECISION)
        if WHOLE:
            dq = add_weighed(zeros(QUERIES, WIDTHS, False), ds, keys, PRECISION)
            # the scale comes after the 16-bit operands: float16 has few small numbers to spare
            store_rows(d_q + skip, live, dq, scale, HEADS * WIDTH, QUERIES, WIDTHS, WIDTH)
    skip = m * d_kv_memory + tl.cast(first, tl.int64) * D_KV_ROW + h * WIDTH
    add_columns(d_k + skip, there, dk, scale, D_KV_ROW, ROWS, WIDTHS, WIDTH)
    add_columns(d_v + skip, there, dv, 1.0, D_KV_ROW, ROWS, WIDTHS, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    do, q, k, v, count, out, lse, delta, d_q, lanes, seed, memory_index, query_index, queries, rows, q_memory,
    kv_memory, count_memory, index_memory, factor, threshold, keep_scale, layer, direction, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, Q_ROW: tl.constexpr, KV_ROW: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, DROPOUT: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid ``(m * HEADS, tiles of queries)``: a program owns a tile of d_q; writes delta for `backward_rows`."""
    at = tl.program_id(0)
    m = (at // HEADS).to(tl.int64)
    h = at % HEADS
    start = tl.program_id(1) * QUERIES
    row = start + tl.arange(0, QUERIES)
    live = row < queries
    if COUNT:
        count += m * count_memory
    k += m * kv_memory + h * WIDTH
    v += m * kv_memory + h * WIDTH
    skip = (m * queries + start) * (HEADS * WIDTH) + h * WIDTH
    grad = load_rows(do + skip, live, HEADS * WIDTH, QUERIES, WIDTHS, WIDTH)
    result = load_rows(out + skip, live, HEADS * WIDTH, QUERIES, WIDTHS, WIDTH)
    less = tl.full([QUERIES], 0.0, tl.float32)
    for j in tl.static_range(len(WIDTHS)):
        less += tl.sum(grad[j].to(tl.float32) * result[j].to(tl.float32), 1)
    tl.store(delta + at.to(tl.int64) * queries + row, less, mask=live)
    sums = tl.load(lse + at.to(tl.int64) * queries + row, mask=live, other=float("inf")) * LOG2E
    x = load_rows(
        q + m * q_memory + h * WIDTH + tl.cast(start, tl.int64) * Q_ROW, live, Q_ROW, QUERIES, WIDTHS, WIDTH
    )  # fmt: skip
    if DROPOUT:
        memory_index += m
        query_index += m * index_memory
        if AHEAD:
            lanes += at.to(tl.int64) * queries * rows
    dq = zeros(QUERIES, WIDTHS, False)
    for first in tl.range(0, rows, ROWS):
        there = present(count, first, rows, ROWS, COUNT)
        at_row = tl.cast(first, tl.int64) * KV_ROW
        keys = load_rows(k + at_row, there, KV_ROW, ROWS, WIDTHS, WIDTH)
        values = load_rows(v + at_row, there, KV_ROW, ROWS, WIDTHS, WIDTH)
        if DROPOUT:
            drawn = draw(
                lanes, seed, memory_index, query_index, start, live, first, rows, layer, direction, h, threshold,
                QUERIES, ROWS, AHEAD,
            )  # fmt: skip
        scores = biased(inner(x, keys, QUERIES, ROWS, PRECISION), factor, count, first, rows, ROWS, COUNT)
        weights = tl.exp2(scores - sums[:, None])
        da = inner(grad, values, QUERIES, ROWS, PRECISION)
        if DROPOUT:
            da *= multipliers(drawn, count, first, rows, keep_scale, QUERIES, ROWS, COUNT, AHEAD)
        dq = add_weighed(dq, (weights * (da - less[:, None])).to(q.dtype.element_ty), keys, PRECISION)
    store_rows(d_q + skip, live, dq, scale, HEADS * WIDTH, QUERIES, WIDTHS, WIDTH)


def attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    heads: int,
    scale: float,
    count: Tensor | None = None,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    dropout: Dropout | None = None,
) -> None:
    """Gradients of `attention_forward`: writes d_q, adds to d_k and d_v; bitwise the same on every run.

    Args:
        do: ``[m, Q, D]`` contiguous, q's dtype: gradient of `out`.
        q, k, v, heads, scale, count, dropout: as in the forward.
        out, lse: what the forward gave.
        d_q: ``[m, Q, D]`` contiguous, float32 or q's dtype, to write to; for a q that all memories share the caller
            sums it over m.
        d_k, d_v: float32 ``[m, P, D]`` of equal strides, to add to; absent rows are left alone.
    """
    call = Call.of("attention_backward", q, k, v, heads, scale, count, dropout)
    call.check_contiguous(do=do, out=out, lse=lse, d_q=d_q)
    call.check_strides(d_k=d_k, d_v=d_v)
    m, queries, rows = call.shape
    if m == 0 or queries == 0:
        return
    tiles = backward_tiles(call.target, q.dtype, call.width, rows, count=count is not None)
    delta = torch.empty_like(lse)
    lanes = kept_lanes(call)
    if tiles.queries is not None:
        part = tiles.queries
        backward_queries[(m * heads, triton.cdiv(queries, part.queries))](
            do, q, k, v, count, out, lse, delta, d_q, lanes, *call.sizes(), scale, **call.constants(part),
            **call.drops(), **part.options(),
        )  # fmt: skip
    part = tiles.rows
    backward_rows[(m * heads, triton.cdiv(rows, part.rows))](
        do, q, k, v, count, lse, delta, d_q, d_k, d_v, lanes, *call.sizes(), scale, d_k.stride(0),
        **call.constants(part), **call.drops(), D_KV_ROW=d_k.stride(1), WHOLE=tiles.queries is None,
        **part.options(),
    )  # fmt: skip
