"""Counter-based dropout masks: Philox 4x32-10, written in torch integer arithmetic.

Every backend draws the same bits, so that tile, shard, rank, collapse and recompute never change a mask. The C++ and
Triton versions (`csrc/philox.h`, `kernels/`) agree with this file on the golden values in docs/conventions.md.

Key: the low and the high word of the 64-bit seed. Counter words::

    site | layer << 8 | direction << 16 | head << 17,  global memory index,  global query index,  column >> 3

One call yields four 32-bit words, read as eight 16-bit lanes, low half first: the lanes of columns 8c .. 8c+7.
A column is a memory row's original index for attention weights, a feature index elsewhere. An element is kept where
its lane is at least t = round(65536 p), and scaled by 65536 / (65536 - t).

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Site(IntEnum):
    """Where a mask is applied."""

    ATTENTION = 0
    AFTER_OUT_PROJECTION = 1
    FFN_HIDDEN = 2
    AFTER_FFN = 3
    BEFORE_HEAD = 4
    HEAD_HIDDEN_1 = 5
    HEAD_HIDDEN_2 = 6
    HEAD_HIDDEN_3 = 7


_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox 4x32; int64 tensors holding 32-bit words, broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # the 64-bit product wraps in int64; its upper word comes out right after the mask
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (((p1 >> 32) & _MASK) ^ c1 ^ k0),
            p1 & _MASK,
            (((p0 >> 32) & _MASK) ^ c3 ^ k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def seed_key(seed: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high word of an int64 seed tensor of one element."""
    seed = seed.reshape(())
    return seed & _MASK, (seed >> 32) & _MASK


def lanes(
    seed: Tensor,
    site: Site,
    layer: int,
    direction: int,
    head: int | Tensor,
    memory: Tensor,
    query: Tensor,
    columns: int,
) -> Tensor:
    """The 16-bit lanes of columns 0 .. columns-1 of each (memory, query) pair.

    Args:
        seed: int64 tensor of one element.
        head: an int, or an int64 tensor that broadcasts with `memory` and `query`.
        memory, query: int64 global indices; they broadcast against each other to a shape ``[...]``.

    Returns:
        int64 ``[..., columns]`` with values in 0 .. 65535.
    """
    blocks = (columns + 7) // 8
    device = memory.device
    word0 = torch.as_tensor(head, device=device) * (1 << 17) + (int(site) | layer << 8 | direction << 16)
    c3 = torch.arange(blocks, device=device)
    word0, memory, query = (x.unsqueeze(-1) for x in torch.broadcast_tensors(word0, memory & _MASK, query & _MASK))
    drawn = philox_4x32((word0, memory, query, c3), seed_key(seed.to(device)))
    words = torch.stack(torch.broadcast_tensors(*drawn), dim=-1)
    both = torch.stack((words & 0xFFFF, words >> 16), dim=-1)
    return both.flatten(-3)[..., :columns]


def threshold(p: float) -> int:
    """t = round(65536 p): lanes below it are dropped."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1), got {p}.")
    return min(round(65536 * p), 65535)


def keep_scale(p: float) -> float:
    """The inverse of the exact keep rate, 65536 / (65536 - t)."""
    return 65536 / (65536 - threshold(p))
