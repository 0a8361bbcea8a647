"""How many of the lanes that a row stands for dropout keeps, drawn ahead: `attention_table.draws_ahead` says where.

A row of n original rows, columns p .. p+n-1, has n lanes: in the padding of a text 80 and more. They are counted by a
kernel of their own, because the count takes a loop of unknown length, in the middle of which the attention kernels
would hold all their tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_call import Call
from .attention_table import LANES
from .attention_tiles import counts, drawn_bits
from .philox import spread_bits


@triton.jit(do_not_specialize=["queries", "rows", "threshold", "layer", "direction", "columns"])
def count_lanes(
    lanes, count, seed, memory_index, query_index, queries, rows, count_memory, index_memory, threshold, layer,
    direction, columns, HEADS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Grid ``(m * HEADS, tiles of queries, tiles of rows)``."""
    at = tl.program_id(0)
    m = (at // HEADS).to(tl.int64)
    h = at % HEADS
    query_row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    live = query_row < queries
    first = tl.program_id(2) * ROWS
    row = first + tl.arange(0, ROWS)
    if COUNT:
        n = counts(count + m * count_memory, first, rows, ROWS)
    else:
        n = tl.full([ROWS], 1, tl.int32)
    key = tl.load(seed)
    memory = tl.load(memory_index + m)
    query = tl.load(query_index + m * index_memory + query_row, mask=live, other=0)
    where = lanes + (at.to(tl.int64) * queries + query_row) * rows
    # rows of one: a lane each
    bits = drawn_bits(key, layer, direction, h, memory, query, first // 8, threshold, ROWS // 8)
    kept = spread_bits(bits, QUERIES, ROWS // 8).to(tl.int16)
    single = live[:, None] & ((n <= 1) & (row < rows))[None, :]
    tl.store(where[:, None] + row[None, :], kept, mask=single)
    # rows of several: few of them, most often one, the padding
    none: tl.constexpr = 2147483647
    BLOCKS: tl.constexpr = 16
    p = tl.min(tl.where(n > 1, row, none), 0)
    while p < none:
        end = tl.minimum(p + tl.sum(tl.where(row == p, n, 0), 0), columns)
        total = tl.full([QUERIES], 0, tl.int32)
        for block in range(p // 8, (end + 7) // 8, BLOCKS):
            some = drawn_bits(key, layer, direction, h, memory, query, block, threshold, BLOCKS)
            # the block's lanes from p on, before the end
            column = 8 * (block + tl.arange(0, BLOCKS))
            low = tl.minimum(tl.maximum(p - column, 0), 8)
            high = tl.minimum(tl.maximum(end - column, 0), 8)
            some = some & (((1 << high) - 1) & -(1 << low))[None, :]
            some = some - ((some >> 1) & 0x55)
            some = (some & 0x33) + ((some >> 2) & 0x33)
            total += tl.sum((some + (some >> 4)) & 0x0F, 1)
        tl.store(where + p, total.to(tl.int16), mask=live)
        p = tl.min(tl.where((n > 1) & (row > p), row, none), 0)


def kept_lanes(call: Call) -> Tensor | None:
    """int16 ``[m, H, Q, P]``, or None where the attention kernels draw themselves, or nothing is dropped."""
    d, count = call.dropout, call.count
    if d is None or not call.ahead:
        return None
    if d.columns > torch.iinfo(torch.int16).max:
        raise ValueError(
            f"{call.name}: dropout whose lanes are drawn ahead takes at most 32767 original rows, got {d.columns}. "
            "Use the torch backend for longer ones."
        )
    m, queries, rows = call.shape
    lanes = torch.empty(m, call.heads, queries, rows, dtype=torch.int16, device=call.q.device)
    count_lanes[(m * call.heads, triton.cdiv(queries, LANES.queries), triton.cdiv(rows, LANES.rows))](
        lanes, count, d.seed, d.memory_index, d.query_index, queries, rows, call.count_memory, call.index_memory,
        d.threshold, d.layer, d.direction, d.columns, HEADS=call.heads, QUERIES=LANES.queries, ROWS=LANES.rows,
        COUNT=count is not None, **LANES.options(),
    )  # fmt: skip
    return lanes
