"""MaxSim without its scores: each token's best row of each memory, and the gradients of both sides.

Equivalent to, for each memory m::

    s = v[m] @ w.T                                  # [P, N], never written
    best[m], index[m] = s[count[m] > 0].max(0)      # no row at all: 0 and -1

Small memories share a tile: its columns are G memories of ROWS rows each. The maximum is taken of integers that are
ordered as the scores are (`ordered`): equal ones meet as equal, NaN is above infinity as in torch's amax, and one
number is left over for "no row".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_table import target
from .launch import launch

#: Numbers that change from call to call: a kernel compiled for one value of them serves all.
RUNTIME = ("memories", "tokens", "rows", "depth")

#: Below every score's integer, NaN's too.
NONE = tl.constexpr(-(2**31))


class Tiles(NamedTuple):
    """How a kernel cuts its work.

    Args:
        tokens: of a tile; where they are what is summed over, of a step.
        rows: of a tile: all of a memory's, of several memories, or some of one; 0 where rows are looked up.
        columns: of D; where they are what is summed over, of a step.
    """

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Of Triton's compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def of(self, rows: int) -> tuple[int, int]:
        """How many memories of so many rows share a tile, and rows that each has in it, a power of two.

        Twice as many memories of 16 rows spilled; their tile is half as wide.
        """
        each = min(self.rows, max(16, triton.next_power_of_2(rows)))
        return self.rows // max(32, each), each


class Choice(NamedTuple):
    """Tiles of the three kernels."""

    forward: Tiles
    d_rows: Tiles
    d_tokens: Tiles


# Not measured on a GPU. 256 rows hold an image's 197 in one pass over its columns, which reads a tile's tokens once: at
# 128 x 128 the L2 cache is what limits a product. On sm_100 such a tile spilled 316 bytes where it looks for the index,
# half of it 24 with 8 warps and triton 3.6, and 376 in the gradients of rows; on sm_90 those spilled up to 52 with
# steps of 64 tokens. Ampere's operands pass through registers, and float32 is not for the tensor cores: smaller tiles.
_CHOICES = {
    (80, 2): Choice(Tiles(128, 128, 32, 8, 3), Tiles(32, 128, 128, 8, 3), Tiles(32, 0, 128, 4, 1)),
    (90, 2): Choice(Tiles(128, 256, 64, 8, 3), Tiles(32, 256, 128, 8, 3), Tiles(32, 0, 128, 4, 1)),
    (100, 2): Choice(Tiles(128, 128, 64, 4, 3), Tiles(64, 128, 128, 8, 3), Tiles(32, 0, 128, 4, 1)),
}
# Devices with 99 KiB of shared memory, float32, and the interpreter.
_SMALL = Choice(Tiles(64, 64, 32, 8, 2), Tiles(32, 64, 64, 8, 2), Tiles(32, 0, 128, 4, 1))


def tiles(device: int, dtype: torch.dtype) -> Choice:
    """Of a device as `attention_table.target` names it."""
    return _CHOICES.get((device, dtype.itemsize), _SMALL)


@triton.jit
def ordered(x):
    """float32 as int32 in the same order, NaN above infinity; its own inverse."""
    return x ^ ((x >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=RUNTIME)
def best_rows(
    v, w, count, best, index, memories, tokens, rows, depth,
    D: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    COUNT: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Grid ``(tiles of tokens, memories / GROUP)``, tokens first: programs that run together share their rows."""
    COLUMNS: tl.constexpr = GROUP * ROWS
    token = tl.arange(0, TOKENS)
    first_token = tl.program_id(0).to(tl.int64) * TOKENS
    first = tl.program_id(1).to(tl.int64) * GROUP
    column, k = tl.arange(0, COLUMNS), tl.arange(0, STEP)
    memory, row = column // ROWS, column % ROWS
    # what is beyond the end reads the first: no mask in the loop, and nothing of it is stored
    live = first_token + token < tokens
    w += first_token * D
    token_at = tl.where(live, token, 0)[:, None] * D + k[None, :]
    top = tl.full([TOKENS, GROUP], NONE, tl.int32)
    where = tl.full([TOKENS, GROUP], -1, tl.int32)
    for start in tl.range(0, rows, ROWS):
        there = (first + memory < memories) & (start + row < rows)
        at = (first * rows + start) * D
        v_at = v + at + tl.where(there, memory * rows + row, 0)[None, :] * D + k[:, None]
        w_at = w + token_at
        acc = tl.zeros((TOKENS, COLUMNS), tl.float32)
        # `depth` is D, at run time: unrolled, the loop's loads would need more registers
        for step in range(0, depth, STEP):
            if D % STEP == 0:
                left, right = tl.load(w_at), tl.load(v_at)
            else:
                ok = step + k < D
                left = tl.load(w_at, mask=ok[None, :], other=0.0)
                right = tl.load(v_at, mask=ok[:, None], other=0.0)
            acc = tl.dot(left, right, acc, input_precision="ieee")
            w_at += STEP
            v_at += STEP
        if COUNT:
            there &= tl.load(count + first * rows + start + memory * rows + row, mask=there, other=0) > 0
        key = tl.where(there[None, :], ordered(acc.to(tl.int32, bitcast=True)), NONE)
        key = tl.reshape(key, (TOKENS, GROUP, ROWS))
        higher = tl.max(key, 2)
        if INDEX:
            # the first of those that are the best; no tile has more rows than its row numbers reach
            among = tl.where(key == higher[:, :, None], tl.arange(0, ROWS)[None, None, :], ROWS)
            where = tl.where(higher > top, start + tl.min(among, 2), where)
        top = tl.maximum(top, higher)
    m = first + tl.arange(0, GROUP)
    mask = live[:, None] & (m < memories)[None, :]
    at = m[None, :] * tokens + (first_token + token)[:, None]
    tl.store(best + at, tl.where(top == NONE, 0.0, ordered(top).to(tl.float32, bitcast=True)), mask=mask)
    if INDEX:
        tl.store(index + at, where, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def row_gradients(
    w, g, index, scale, d_v, memories, tokens, rows, steps,
    D: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``d_v[m, p] = sum over t with index[m, t] == p of g[m, t] w[t]``: a product with g where the index is p, else 0.

    Grid ``(tiles of D, tiles of rows, memories / GROUP)``.

    Args:
        scale: float32 ``[memories]``, the largest of a memory's `g`, or None: half precision has few exponents.
        steps: of tokens.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.program_id(1) * ROWS
    m = tl.program_id(2).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    row = start + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    acc = tl.zeros((GROUP * ROWS, COLUMNS), tl.float32)
    for step in range(0, steps):
        t = step * TOKENS + token
        mask = (m < memories)[:, None] & (t < tokens)[None, :]
        at = m[:, None] * tokens + t[None, :]
        found = tl.load(index + at, mask=mask, other=-1)
        weight = tl.load(g + at, mask=mask, other=0.0)
        if scale is not None:
            weight /= tl.load(scale + m, mask=m < memories, other=1.0)[:, None]
        one = tl.where(found[:, None, :] == row[None, :, None], weight[:, None, :], 0.0)
        one = tl.reshape(one, (GROUP * ROWS, TOKENS)).to(w.dtype.element_ty)
        w_at = w + t.to(tl.int64)[:, None] * D + column[None, :]
        right = tl.load(w_at, mask=(t < tokens)[:, None] & (column < D)[None, :], other=0.0)
        acc = tl.dot(one, right, acc, input_precision="ieee")
    acc = tl.reshape(acc, (GROUP, ROWS, COLUMNS))
    if scale is not None:
        acc *= tl.load(scale + m, mask=m < memories, other=1.0)[:, None, None]
    at = (m[:, None] * rows + row[None, :]) * D
    mask = (m < memories)[:, None] & (row < rows)[None, :]
    tl.store(d_v + at[:, :, None] + column[None, None, :], acc, mask=mask[:, :, None] & (column < D)[None, None, :])


@triton.jit(do_not_specialize=RUNTIME)
def token_gradients(
    v, g, index, d_w, memories, tokens, rows,
    D: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``d_w[t] = sum over m, in order, of g[m, t] v[m, index[m, t]]``; grid ``(tiles of D, tiles of tokens)``."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    live, ok = t < tokens, column < D
    acc = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for number in tl.range(0, memories):
        m = tl.cast(number, tl.int64)
        row = tl.load(index + m * tokens + t, mask=live, other=-1)
        there = row >= 0
        weight = tl.load(g + m * tokens + t, mask=there, other=0.0)
        at = (m * rows + row)[:, None] * D + column[None, :]
        acc += weight[:, None] * tl.load(v + at, mask=there[:, None] & ok[None, :], other=0.0).to(tl.float32)
    tl.store(d_w + t.to(tl.int64)[:, None] * D + column[None, :], acc, mask=live[:, None] & ok[None, :])


def max_sim(
    v: Tensor, w: Tensor, count: Tensor | None = None, *, index: bool = False, choice: Choice | None = None
) -> tuple[Tensor, Tensor | None]:
    """Each token's best product with the rows of each memory, and where it is.

    Args:
        v: ``[M, P, D]`` contiguous; float32, bfloat16 or float16.
        w: ``[N, D]`` contiguous, v's dtype.
        count: int32 ``[M, P]`` contiguous; 0 is an absent row, which may hold NaN.
        index: whether the second result is wanted.
        choice: in place of the table's.

    Returns:
        float32 ``[M, N]``, 0 for a memory without rows; int32 ``[M, N]``, the first of equal rows, -1 for a memory
        without rows; or None.
    """
    (m, rows, d), n = v.shape, w.shape[0]
    _check(v=v, w=w, count=count)
    if v.dtype != w.dtype or w.shape[1] != d or (count is not None and count.shape != v.shape[:2]):
        raise ValueError(
            f"max_sim: v [M, P, D], w [N, D] of its dtype and count [M, P] must agree, got {v.dtype} "
            f"{tuple(v.shape)}, {w.dtype} {tuple(w.shape)} and {None if count is None else tuple(count.shape)}."
        )
    best = v.new_empty(m, n, dtype=torch.float32)
    found = v.new_empty(m, n, dtype=torch.int32) if index else None
    if best.numel() == 0:
        return best, found
    tile = (choice or tiles(target(v.device), v.dtype)).forward
    group, each = tile.of(rows)
    launch(
        best_rows,
        (triton.cdiv(n, tile.tokens), triton.cdiv(m, group)),
        {
            "v": v, "w": w, "count": count, "best": best, "index": found, "memories": m, "tokens": n, "rows": rows,
            "depth": d, "D": d, "TOKENS": tile.tokens, "GROUP": group, "ROWS": each, "STEP": tile.columns,
            "COUNT": count is not None, "INDEX": index,
        },
        **tile.options(),
    )  # fmt: skip
    return best, found


def max_sim_backward(
    v: Tensor, w: Tensor, g: Tensor, index: Tensor, *, choice: Choice | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of v and w, the same bits on every run: a row that was not the best of any token gets 0.

    Args:
        v, w: as `max_sim` was given.
        g: float32 ``[M, N]`` contiguous, gradient of its first result.
        index: its second result.
        choice: in place of the table's.

    Returns:
        float32 ``[M, P, D]`` and ``[N, D]``. In the first `g` is rounded to v's dtype, as an operand of a product.
    """
    (m, rows, d), n = v.shape, w.shape[0]
    _check(v=v, w=w, g=g, index=index)
    if m == 0 or n == 0:
        return v.new_zeros(v.shape, dtype=torch.float32), w.new_zeros(w.shape, dtype=torch.float32)
    d_v, d_w = (x.new_empty(x.shape, dtype=torch.float32) for x in (v, w))
    chosen = choice or tiles(target(v.device), v.dtype)
    scale = None
    if v.dtype == torch.float16:
        scale = g.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    tile = chosen.d_rows
    group, each = tile.of(rows)
    sizes = {"memories": m, "tokens": n, "rows": rows, "D": d}
    launch(
        row_gradients,
        (triton.cdiv(d, tile.columns), triton.cdiv(rows, each), triton.cdiv(m, group)),
        {
            "w": w, "g": g, "index": index, "scale": scale, "d_v": d_v, **sizes,
            "steps": triton.cdiv(n, tile.tokens), "TOKENS": tile.tokens, "GROUP": group, "ROWS": each,
            "COLUMNS": tile.columns,
        },
        **tile.options(),
    )  # fmt: skip
    tile = chosen.d_tokens
    launch(
        token_gradients,
        (triton.cdiv(d, tile.columns), triton.cdiv(n, tile.tokens)),
        {"v": v, "g": g, "index": index, "d_w": d_w, **sizes, "TOKENS": tile.tokens, "COLUMNS": tile.columns},
        **tile.options(),
    )
    return d_v, d_w


def _check(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"max_sim: {name} must be contiguous, got shape {tuple(tensor.shape)}, strides {tensor.stride()}."
            )
