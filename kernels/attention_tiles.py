"""What the attention kernels share: tiles of rows in parts of a power of two, scores, dropout multipliers.

Triton's tiles are powers of two. A head of width 192 is read as 128 and 64 columns, and its products are summed: a
tile of 256 columns would multiply a third more. All tiles of scores are ``[queries, rows]``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import counter_word, drawn_once, kept_bits

#: Softmax runs in powers of two: log2(e) is folded into the scale.
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def widths(head_width: int, itemsize: int = 2, target: int = 0) -> tuple[int, ...]:
    """Powers of two, 16 at least, that cover a head's width: (128, 64) for 192, (64, 64, 64) for float32.

    All but the last are equal; the last may reach over the head's end, and its columns there are read as zeros.
    Products of float32 hold their operands in registers, and more than 64 columns of them spilled. On sm_100 they get
    32: Triton puts products of 64 rows on the tensor cores there, which round float32 to TF32, whatever precision they
    are asked for.
    """
    first = 1 << (head_width.bit_length() - 1)
    if itemsize == 4:
        first = min(first, 32 if target == 100 else 64)
    whole, rest = divmod(head_width, first)
    return (first,) * whole + ((max(16, triton.next_power_of_2(rest)),) if rest else ())


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
    for j in tl.static_range(len(WIDTHS)):
        column = j * WIDTHS[0] + tl.arange(0, WIDTHS[j])
        where = base + tl.arange(0, ROWS)[:, None] * ROW + column[None, :]
        if j * WIDTHS[0] + WIDTHS[j] > WIDTH:
            tiles += (tl.load(where, mask=live[:, None] & (column < WIDTH)[None, :], other=0.0),)
        else:
            tiles += (tl.load(where, mask=live[:, None], other=0.0),)
    return tiles


@triton.jit
def store_rows(
    base, live, tiles, factor, ROW: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr
):
    """Store `tiles`, each times `factor`, a scalar or ``[ROWS, 1]``, in the dtype of `base`; see `load_rows`."""
    for j in tl.static_range(len(WIDTHS)):
        column = j * WIDTHS[0] + tl.arange(0, WIDTHS[j])
        where = base + tl.arange(0, ROWS)[:, None] * ROW + column[None, :]
        value = (tiles[j] * factor).to(base.dtype.element_ty)
        if j * WIDTHS[0] + WIDTHS[j] > WIDTH:
            tl.store(where, value, mask=live[:, None] & (column < WIDTH)[None, :])
        else:
            tl.store(where, value, mask=live[:, None])


@triton.jit
def add_columns(
    base, live, tiles, factor, ROW: tl.constexpr, ROWS: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr
):
    """Add `tiles` ``[width, ROWS]``, each times `factor`, to the rows at `base`."""
    for j in tl.static_range(len(WIDTHS)):
        column = j * WIDTHS[0] + tl.arange(0, WIDTHS[j])
        where = base + tl.arange(0, ROWS)[None, :] * ROW + column[:, None]
        mask = live[None, :] & (column < WIDTH)[:, None]
        tl.store(where, tl.load(where, mask=mask, other=0.0) + tiles[j] * factor, mask=mask)


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
def draw(
    lanes, seed, memory_index, query_index, start, live, first, rows, layer, direction, head, threshold,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """What dropout keeps of a tile's weights, as small as can be, for `multipliers` to spread once scores are there.

    A bit for each row, 32 in an int32, or 16 where ROWS is 16; they are drawn before the scores are there, because the
    generator wants registers. AHEAD: int16 ``[QUERIES, ROWS]`` of kept lanes, from `attention_lanes.kept_lanes`.

    Args:
        lanes: pointer to the (memory, head)'s ``[queries, rows]``; seed, memory_index: to one value; query_index: to
            the memory's queries.
        start: of the tile of queries, bool `live` says which are there; first: of the tile of rows, a multiple of 8.
    """
    row = tl.arange(0, QUERIES)
    if AHEAD:
        column = first + tl.arange(0, ROWS)
        where = lanes + tl.cast(start, tl.int64) * rows + row[:, None] * rows + column[None, :]
        return tl.load(where, mask=live[:, None] & (column < rows)[None, :], other=0)
    else:
        query = tl.load(query_index + start + row, mask=live, other=0)
        bits = drawn_bits(
            tl.load(seed), layer, direction, head, tl.load(memory_index), query, first // 8, threshold, ROWS // 8
        )
        TOGETHER: tl.constexpr = 4 if ROWS > 32 else ROWS // 8
        bits = tl.reshape(bits, (QUERIES, ROWS // 8 // TOGETHER, TOGETHER))
        return drawn_once(tl.sum(bits << (8 * tl.arange(0, TOGETHER))[None, None, :], 2))


@triton.jit
def drawn_bits(seed, layer, direction, head, memory, query, block, threshold, BLOCKS: tl.constexpr):
    """Eight columns' bits of attention weights, site 0: int32 ``[queries, BLOCKS]`` from column ``8 block`` on."""
    word = counter_word(0, layer, direction, head)
    blocks = block + tl.arange(0, BLOCKS)
    return kept_bits(seed, word, memory, query[:, None], blocks[None, :], threshold)


@triton.jit
def multipliers(
    drawn, count, first, rows, keep_scale, QUERIES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Dropout multipliers ``[QUERIES, ROWS]`` of softmax weights: 0 where a row is dropped, the scale where it is kept.

    A row that stands for n rows, columns p .. p+n-1, gets (kept lanes among them) / n times the scale.

    Args:
        drawn: from `draw`.
    """
    if COUNT:
        n = tl.maximum(counts(count, first, rows, ROWS), 1).to(tl.float32)
        return drawn.to(tl.float32) / n[None, :] * keep_scale
    elif AHEAD:
        return drawn.to(tl.float32) * keep_scale
    else:
        IN_A_WORD: tl.constexpr = 32 if ROWS > 32 else ROWS
        each = (drawn[:, :, None] >> tl.arange(0, IN_A_WORD)[None, None, :]) & 1
        return tl.where(tl.reshape(each, (QUERIES, ROWS)) != 0, keep_scale, 0.0)
