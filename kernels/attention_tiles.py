"""What the attention kernels share: tiles of rows in parts of a power of two, scores, dropout multipliers.

Triton's tiles are powers of two. A head of width 192 is read as 128 and 64 columns, and its products are summed: a
tile of 256 columns would multiply a third more. All tiles of scores are ``[queries, rows]``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import counter_word, kept_bits, spread_bits

#: Softmax runs in powers of two: log2(e) is folded into the scale.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def widths(head_width: int) -> tuple[int, ...]:
    """Powers of two, 16 at least and two at most, that cover a head's width: (128, 64) for 192, (64,) for 64.

    The last may reach over the head's end; its columns there are read as zeros.
    """
    first = 1 << (head_width.bit_length() - 1)
    rest = head_width - first
    return (first, max(16, triton.next_power_of_2(rest))) if rest else (first,)


@triton.jit
def load_rows(base, live, ROW: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr):
    """One tile ``[ROWS, width]`` for each of WIDTHS; zeros where a row is not live.

    Args:
        base: pointer to the first row's first column.
        live: bool ``[ROWS]``.
        ROW: elements from a row to the next: a constant, so that a thread's rows are immediate offsets.
        WIDTH: of the head; the last part may be wider than what remains.
    """
    tiles = ()
    start = 0
    for j in tl.static_range(len(WIDTHS)):
        column = tl.arange(0, WIDTHS[j])
        where = base + start + tl.arange(0, ROWS)[:, None] * ROW + column[None, :]
        if start + WIDTHS[j] > WIDTH:
            tiles += (tl.load(where, mask=live[:, None] & (start + column < WIDTH)[None, :], other=0.0),)
        else:
            tiles += (tl.load(where, mask=live[:, None], other=0.0),)
        start += WIDTHS[j]
    return tiles


@triton.jit
def store_rows(base, live, tiles, factor, ROW: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr):
    """Store `tiles`, each times `factor`, a scalar or ``[ROWS, 1]``, in the dtype of `base`; see `load_rows`."""
    start = 0
    for j in tl.static_range(len(WIDTHS)):
        column = tl.arange(0, WIDTHS[j])
        where = base + start + tl.arange(0, ROWS)[:, None] * ROW + column[None, :]
        value = (tiles[j] * factor).to(base.dtype.element_ty)
        if start + WIDTHS[j] > WIDTH:
            tl.store(where, value, mask=live[:, None] & (start + column < WIDTH)[None, :])
        else:
            tl.store(where, value, mask=live[:, None])
        start += WIDTHS[j]


@triton.jit
def add_columns(base, live, tiles, factor, ROW: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr):
    """Add `tiles` ``[width, ROWS]``, each times `factor`, to the rows at `base`."""
    start = 0
    for j in tl.static_range(len(WIDTHS)):
        column = tl.arange(0, WIDTHS[j])
        where = base + start + tl.arange(0, ROWS)[None, :] * ROW + column[:, None]
        mask = live[None, :] & (start + column < WIDTH)[:, None]
        tl.store(where, tl.load(where, mask=mask, other=0.0) + tiles[j] * factor, mask=mask)
        start += WIDTHS[j]


@triton.jit
def zeros(ROWS: tl.constexpr, WIDTHS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Accumulators ``[ROWS, width]``, or ``[width, ROWS]``."""
    tiles = ()
    for j in tl.static_range(len(WIDTHS)):
        if TRANSPOSED:
            tiles += (tl.full([WIDTHS[j], ROWS], 0.0, tl.float32),)
        else:
            tiles += (tl.full([ROWS, WIDTHS[j]], 0.0, tl.float32),)
    return tiles


@triton.jit
def inner(left, right, QUERIES: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """``left @ right.T``, ``[QUERIES, ROWS]``: summed over the parts of the width."""
    product = tl.full([QUERIES, ROWS], 0.0, tl.float32)
    for j in tl.static_range(len(left)):
        product = tl.dot(left[j], right[j].T, product, input_precision=PRECISION)
    return product


@triton.jit
def add_weighed(total, weights, right, PRECISION: tl.constexpr):
    """``total + weights @ right`` for each part of the width."""
    tiles = ()
    for j in tl.static_range(len(total)):
        tiles += (tl.dot(weights, right[j], total[j], input_precision=PRECISION),)
    return tiles


@triton.jit
def add_transposed(total, left, weights, PRECISION: tl.constexpr):
    """``total + left.T @ weights`` for each part of the width: ``[width, ROWS]``.

    The width is the side that a Hopper instruction wants to be 64 or more; a memory may have 16 rows.
    """
    tiles = ()
    for j in tl.static_range(len(total)):
        tiles += (tl.dot(left[j].T, weights, total[j], input_precision=PRECISION),)
    return tiles


@triton.jit
def scaled(tiles, factor):
    """Each tile times `factor`."""
    result = ()
    for j in tl.static_range(len(tiles)):
        result += (tiles[j] * factor,)
    return result


@triton.jit
def counts(count, start, rows, ROWS: tl.constexpr):
    """int32 ``[ROWS]`` of a memory's rows from `start`, 0 beyond the last."""
    row = start + tl.arange(0, ROWS)
    return tl.load(count + row, mask=row < rows, other=0)


@triton.jit
def present(count, start, rows, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """bool ``[ROWS]``: which rows are there; the others may hold NaN and are not read."""
    if COUNT:
        return counts(count, start, rows, ROWS) > 0
    else:
        return start + tl.arange(0, ROWS) < rows


@triton.jit
def biased(scores, factor, count, start, rows, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Scores to the base 2: times `factor`, plus log2 of the row's count; -inf where there is no row.

    Counts are read again for every tile of queries, from cache: a thread would hold a quarter of them otherwise.
    """
    if COUNT:
        n = counts(count, start, rows, ROWS)
        bias = tl.where(n > 0, tl.log2(tl.maximum(n, 1).to(tl.float32)), float("-inf"))
        return scores * factor + bias[None, :]
    else:
        return tl.where((start + tl.arange(0, ROWS) < rows)[None, :], scores * factor, float("-inf"))


@triton.jit
def attention_word(layer, direction, head):
    """The counter's first word at site 0, attention weights."""
    return counter_word(0, layer, direction, head)


@triton.jit
def multipliers(
    count, start, rows, seed, word, memory, query, columns, threshold, keep_scale,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Dropout multipliers ``[QUERIES, ROWS]`` of softmax weights: 0 where a row is dropped, the scale where it is kept.

    A row that stands for n rows, columns p .. p+n-1, gets (kept lanes among them) / n times the scale.

    Args:
        start: the tile's first row, a multiple of 8.
        word: from `attention_word`; memory, query ``[QUERIES]``: global indices.
    """
    block = start // 8 + tl.arange(0, ROWS // 8)
    bits = kept_bits(seed, word, memory, query[:, None], block[None, :], threshold)
    kept = tl.where(spread_bits(bits, QUERIES, ROWS // 8), keep_scale, 0.0)
    if COUNT:
        n = counts(count, start, rows, ROWS)
        row = start + tl.arange(0, ROWS)
        none: tl.constexpr = 2147483647
        # few rows stand for several, most often one: the padding
        p = tl.min(tl.where(n > 1, row, none), 0)
        while p < none:
            length = tl.sum(tl.where(row == p, n, 0), 0)
            among = _kept_among(seed, word, memory, query, p, tl.minimum(p + length, columns), threshold, QUERIES)
            share = among.to(tl.float32) / length.to(tl.float32) * keep_scale
            kept = tl.where((row == p)[None, :], share[:, None], kept)
            p = tl.min(tl.where((n > 1) & (row > p), row, none), 0)
    return kept


@triton.jit
def _kept_among(seed, word, memory, query, first, end, threshold, QUERIES: tl.constexpr):
    """How many of the columns first .. end-1 are kept, int32 ``[QUERIES]``."""
    BLOCKS: tl.constexpr = 16
    total = tl.full([QUERIES], 0, tl.int32)
    for at in range(first // 8, (end + 7) // 8, BLOCKS):
        block = at + tl.arange(0, BLOCKS)
        bits = kept_bits(seed, word, memory, query[:, None], block[None, :], threshold)
        # the block's lanes from `first` on, before `end`
        low = tl.minimum(tl.maximum(first - 8 * block, 0), 8)
        high = tl.minimum(tl.maximum(end - 8 * block, 0), 8)
        bits = bits & (((1 << high) - 1) & -(1 << low))[None, :]
        bits = bits - ((bits >> 1) & 0x55)
        bits = (bits & 0x33) + ((bits >> 2) & 0x33)
        total += tl.sum((bits + (bits >> 4)) & 0x0F, 1)
    return total
