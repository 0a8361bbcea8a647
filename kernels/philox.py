"""Counter-based dropout masks in Triton: Philox 4x32-10, the bits of carzero/ops/rng.py.

Key: the low and the high word of the 64-bit seed. Counter words::

    site | layer << 8 | direction << 16 | head << 17,  global memory index,  global query index,  column >> 3

One call yields four 32-bit words, read as eight 16-bit lanes, low half first: the lanes of columns 8c .. 8c+7. A lane
below the threshold is dropped. One call's eight decisions are one small number (`kept_bits`), so that a kernel moves
an eighth of a mask between its layouts, and draws no word twice, before `spread_bits` turns it into elements.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); golden values in docs/conventions.md.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

#: Sites of the masks, as `carzero.ops.rng.Site` numbers them.
ATTENTION, AFTER_OUT_PROJECTION, FFN_HIDDEN, AFTER_FFN, BEFORE_HEAD, HEAD_HIDDEN = 0, 1, 2, 3, 4, 5


class Dropout(NamedTuple):
    """The masks of one layer and one block of pairs; kernels add site and head.

    Args:
        seed: int64 ``[1]``.
        threshold: t, lanes below it are dropped; 1 .. 65535.
        scale: of what is kept, 65536 / (65536 - t).
        memory_index: int64 ``[m]``, global.
        query_index: int64 ``[m, Q]``, or ``[1, Q]`` where all memories meet the same queries; global.
        columns: P0, rows of a memory before collapse.
    """

    seed: Tensor
    threshold: int
    scale: float
    layer: int
    direction: int
    memory_index: Tensor
    query_index: Tensor
    columns: int


@triton.jit
def counter_word(site, layer, direction, head):
    """The counter's first word."""
    return site | (layer << 8) | (direction << 16) | (head << 17)


@triton.jit
def _two_lanes(word, threshold):
    low = ((word & 0xFFFF) >= threshold).to(tl.int32)
    high = ((word >> 16) >= threshold).to(tl.int32)
    return low | (high << 1)


@triton.jit
def kept_bits(seed, word, memory, query, block, threshold):
    """Which columns ``8 block .. 8 block + 7`` are kept: int32, bit j for column ``8 block + j``.

    Args:
        seed: int64, one value.
        word: int32, from `counter_word`.
        memory, query: global indices, any integer type: their low 32 bits count.
        block: int32, column >> 3. The last four broadcast against each other.
        threshold: int32.
    """
    threshold = threshold.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, word, memory.to(tl.int32), query.to(tl.int32), block)
    bits = _two_lanes(w0, threshold) | (_two_lanes(w1, threshold) << 2)
    return bits | (_two_lanes(w2, threshold) << 4) | (_two_lanes(w3, threshold) << 6)


@triton.jit
def drawn_once(bits):
    """`bits` themselves, as a sum with zeros over a leading axis, through which the compiler moves no layout.

    Without it the generator is moved behind the conversion to the scores' layout, where four threads hold each
    element and all of them draw it: 497 high multiplications instead of 138 for 64 x 128 on sm_90, and spills.
    """
    return tl.sum(tl.permute(tl.join(bits, tl.zeros_like(bits)), (2, 0, 1)), 0)


@triton.jit
def spread_bits(bits, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """``[ROWS, BLOCKS]`` of `kept_bits` as a mask ``[ROWS, 8 * BLOCKS]``."""
    lane = tl.arange(0, 8)[None, None, :]
    return tl.reshape((bits[:, :, None] >> lane) & 1, (ROWS, 8 * BLOCKS)) != 0
