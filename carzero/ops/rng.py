"""Counter-based dropout masks: Philox 4x32-10, written in torch integer arithmetic.

Every backend draws the same bits, so that tile, shard, rank, collapse and recompute never change a mask. The C++ and
Triton versions (`csrc/philox.h`, `kernels/`) agree with this file on the golden values in docs/conventions.md.

Key: the low and the high word of the 64-bit seed. Counter words::

    site | layer << 8 | direction << 16 | head << 17,  global memory index,  global query index,
    column >> 3 | token << 16

One call yields four 32-bit words, read as eight 16-bit lanes, low half first: the lanes of columns 8c .. 8c+7.
A column is a memory row's original index for attention weights, a feature index elsewhere; the token is 0 where a query
has but one, and columns lie below 2^19 where it has more. An element is kept where its lane is at least
t = round(65536 p), and scaled by 65536 / (65536 - t).

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
    SELF_ATTENTION = 8
    AFTER_SELF_OUT_PROJECTION = 9


_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
# the upper bit of each 16-bit lane of an int64
_SIGNS = 0x8000_8000_8000_8000 - (1 << 64)


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox 4x32; int64 tensors holding 32-bit words, broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # the 64-bit product wraps in int64; its upper word comes out right after the mask
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c2 = (
            ((p1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK),
            ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK),
        )
        # operands of a xor that is masked: until the last round their upper halves may stay
        c1, c3 = p1, p0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


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
    token: int | Tensor = 0,
) -> Tensor:
    """The 16-bit lanes of columns 0 .. columns-1 of each (memory, query) pair.

    Args:
        seed: int64 tensor of one element.
        head, token: an int, or an int64 tensor that broadcasts with `memory` and `query`.
        memory, query: int64 global indices; they broadcast against each other to a shape ``[...]``.

    Returns:
        int64 ``[..., columns]`` with values in 0 .. 65535.
    """
    return _signed_lanes(seed, site, layer, direction, head, memory, query, columns, token).to(torch.int64) + 32768


def kept(
    seed: Tensor,
    site: Site,
    layer: int,
    direction: int,
    head: int | Tensor,
    memory: Tensor,
    query: Tensor,
    columns: int,
    p: float,
    token: int | Tensor = 0,
) -> Tensor:
    """Which elements a dropout of p keeps, bool ``[..., columns]``: ``lanes(...) >= threshold(p)``."""
    return _signed_lanes(seed, site, layer, direction, head, memory, query, columns, token) >= threshold(p) - 32768


def _signed_lanes(
    seed: Tensor, site: Site, layer: int, direction: int, head: int | Tensor, memory: Tensor, query: Tensor,
    columns: int, token: int | Tensor,
) -> Tensor:  # fmt: skip
    """`lanes` less 32768, int16: torch compares no unsigned 16-bit numbers."""
    blocks = (columns + 7) // 8
    device = memory.device
    word0 = torch.as_tensor(head, device=device) * (1 << 17) + (int(site) | layer << 8 | direction << 16)
    word0, memory, query = (x.unsqueeze(-1) for x in torch.broadcast_tensors(word0, memory & _MASK, query & _MASK))
    c3 = torch.arange(blocks, device=device)
    c3 = c3 | (token.unsqueeze(-1) if isinstance(token, Tensor) else token) << 16
    w0, w1, w2, w3 = torch.broadcast_tensors(*philox_4x32((word0, memory, query, c3), seed_key(seed.to(device))))
    # two words in one of 64 bits are four lanes in order: no pass over single lanes
    words = torch.stack((w1 << 32 | w0, w3 << 32 | w2), -1)
    return words.bitwise_xor_(_SIGNS).view(torch.int16).flatten(-2)[..., :columns]


def threshold(p: float) -> int:
    """t = round(65536 p): lanes below it are dropped."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1), got {p}.")
    return min(round(65536 * p), 65535)


def keep_scale(p: float) -> float:
    """The inverse of the exact keep rate, 65536 / (65536 - t)."""
    return 65536 / (65536 - threshold(p))
