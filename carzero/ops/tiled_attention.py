"""Attention of one tile of memories: plain, and with the query and output projections absorbed into keys and values.

Heads come first, ``[H, m, rows, K]``: each head is then a strided batch that `torch.bmm` multiplies where it lies,
which took about half the time of a matmul that first copies the heads together.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .masks import PairMasks
from .prepared import Prepared, PreparedLayer

if TYPE_CHECKING:
    from .attention_core import AttentionCore

_SDPA = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


class TileMemory(NamedTuple):
    """What one tile's pairs attend to.

    Args:
        kv: ``[m, P, L, 2, D]`` keys and values, GEMM dtype.
        rows: ``[m, P, D]`` normalised rows that they were made of, or None for a projected memory.
        row_count: int32 ``[m, P]`` or None.
        bias: ``[m, P]`` added to scores, wide dtype, or None.
        present: ``[m]``, 0 for a memory without any row, or None.
        absorbed: for each layer `Absorbed`, or None where the plain order is cheaper.
    """

    kv: Tensor
    rows: Tensor | None
    row_count: Tensor | None
    bias: Tensor | None
    present: Tensor | None
    absorbed: list[Absorbed] | None

    def keys(self, l: int, heads: int) -> Tensor:
        """``[H, m, P, K]``."""
        return head_views(self.kv[:, :, l, 0], heads)

    def values(self, l: int, heads: int) -> Tensor:
        """``[H, m, P, K]``."""
        return head_views(self.kv[:, :, l, 1], heads)


class Absorbed(NamedTuple):
    """One layer's keys times Wq and values times Wo.

    Args:
        keys: ``[m, H * P, D]``, or None in the first layer, whose q is shared by all memories.
        key_bias: ``[m, H * P]``, each key times the query bias.
        values: ``[m, H * P, D]``.
    """

    keys: Tensor | None
    key_bias: Tensor | None
    values: Tensor


def absorption_pays(queries: int, rows: int, width: int, heads: int, layers: int) -> tuple[bool, str]:
    """Whether fewer operations remain with Wq and Wo absorbed into a memory's keys and values, and why.

    Counts multiply-adds of one memory of `rows` rows and its `queries` pairs, over all layers. Without: q and o
    projections, scores and weighted sums. With: K' (not in layer 1) and V' once, then scores and sums H times as wide.
    """
    plain = queries * width * ((2 * layers - 1) * width + 2 * layers * rows)
    absorbed = (2 * layers - 1) * rows * width * width + queries * rows * width * (1 + heads * (2 * layers - 1))
    return (
        absorbed < plain,
        f"{absorbed / 1e6:.0f} M multiply-adds a memory with absorption, {plain / 1e6:.0f} M without",
    )


def absorb(kv: Tensor, weights: Prepared) -> list[Absorbed]:
    """All layers' keys and values ``[m, P, L, 2, D]`` with the projections folded in."""
    heads, result = weights.heads, []
    m, p, _, _, d = kv.shape
    for l, layer in enumerate(weights.layers):
        k, v = (head_views(kv[:, :, l, i], heads) for i in (0, 1))
        # Wo [D, H*K] -> [H, K, D], Wq [H*K, D] -> [H, K, D]
        o = layer.o_weight.T.unflatten(0, (heads, -1))
        values = kv.new_empty(m, heads * p, d)
        for h, part in enumerate(values.unflatten(1, (heads, p)).unbind(1)):
            part.copy_(v[h] @ o[h])
        keys = key_bias = None
        if l:
            q, bias = (t.unflatten(0, (heads, -1)) for t in (layer.q_weight, layer.q_bias))
            keys = kv.new_empty(m, heads * p, d)
            for h, part in enumerate(keys.unflatten(1, (heads, p)).unbind(1)):
                part.copy_(k[h] @ q[h])
            key_bias = torch.stack([k[h] @ bias[h] for h in range(heads)], 1).flatten(1)
        result.append(Absorbed(keys, key_bias, values))
    return result


def attended(
    t: Tensor, q1: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None, core: AttentionCore
) -> Tensor:  # fmt: skip
    """Attention of layer l, after its output projection: ``[m, q, D]``, wide dtype.

    Args:
        t: ``[m, q, D]`` residual stream.
        q1: ``[m or 1, q, D]`` the first layer's queries.
    """
    layer = weights.layers[l]
    if part.absorbed is not None:
        x = (weights.layer_norm(t, layer.norm2) if l else q1).to(weights.gemm)
        return core.attend_absorbed(x, part, l, weights, masks) + layer.o_bias.to(weights.wide)
    o = core.attend(layer_queries(t, q1, l, weights), part, l, weights, masks)
    return weights.linear(o, layer.o_weight, layer.o_bias)


def layer_queries(t: Tensor, q1: Tensor, l: int, weights: Prepared) -> Tensor:
    """q of layer l ``[m or 1, q, D]``."""
    layer: PreparedLayer = weights.layers[l]
    q = weights.linear(weights.layer_norm(t, layer.norm2), layer.q_weight, layer.q_bias) if l else q1
    return q.to(weights.gemm)


def attend(q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
    """Attention output ``[m, q, D]``, GEMM dtype, before the output projection."""
    # SDPA has its own dropout, and would take log n in 16 bits
    if masks is not None or (part.bias is not None and weights.gemm != weights.wide):
        a = probabilities(q, part, l, weights)
        if masks is not None:
            a = a * attention_mask(masks, l, weights.heads, part)
        return weigh(a.to(weights.gemm), part.values(l, weights.heads))
    k, v = (views.transpose(0, 1) for views in (part.keys(l, weights.heads), part.values(l, weights.heads)))
    q = head_views(q, weights.heads).transpose(0, 1).expand(k.shape[0], -1, -1, -1)
    bias = None if part.bias is None else part.bias[:, None, None]
    # torch's own order on a GPU starts with FlashAttention-2, which cuDNN's kernels outrun on Hopper
    with sdpa_kernel(_SDPA, set_priority=True) if q.is_cuda else contextlib.nullcontext():
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if part.present is not None:
        o = o * part.present[:, None, None, None]
    return o.transpose(1, 2).flatten(2)


def probabilities(q: Tensor, part: TileMemory, l: int, weights: Prepared) -> Tensor:
    """Softmax weights ``[H, m, q, P]`` in the wide dtype."""
    k = part.keys(l, weights.heads)
    q = head_views(q, weights.heads).expand(-1, k.shape[1], -1, -1)
    scores = multiply(q, k.transpose(-1, -2)).to(weights.wide)
    return softmax_rows(scores, part, weights)


def softmax_rows(scores: Tensor, part: TileMemory, weights: Prepared) -> Tensor:
    """Softmax over rows of unscaled scores ``[H, m, q, P]``, which are overwritten."""
    scores.mul_(weights.scale)
    if part.bias is None or part.present is None:
        return torch.softmax(scores, -1)
    return torch.softmax(scores.add_(part.bias.unsqueeze(1)), -1).mul_(part.present[:, None, None])


def attention_mask(masks: PairMasks, l: int, heads: int, part: TileMemory) -> Tensor:
    """Dropout multipliers ``[H, m, q, P]``."""
    return masks.attention(l, heads, part.kv.shape[1], part.row_count).transpose(0, 1)


def weigh(a: Tensor, v: Tensor) -> Tensor:
    """``[H, m, q, P]`` times ``[H, m, P, K]``, heads merged: ``[m, q, D]``."""
    out = a.new_empty(a.shape[1], a.shape[2], a.shape[0] * v.shape[-1])
    multiply(a, v, head_views(out, a.shape[0]))
    return out


def attention_backward(
    do: Tensor, q: Tensor, a: Tensor, mask: Tensor | None, part: TileMemory, d_kv: Tensor, l: int, weights: Prepared
) -> Tensor:
    """Gradient of q ``[m, q, D]``, wide dtype; adds to those of the tile's keys and values.

    Args:
        do: ``[m, q, D]`` of the output before its projection.
        q: ``[m or 1, q, D]``, GEMM dtype.
        a: ``[H, m, q, P]`` softmax weights.
        mask: ``[H, m, q, P]`` multipliers of `a`, or None.
        d_kv: ``[m, P, L, 2, D]`` accumulator, wide dtype.
    """
    heads, gemm = weights.heads, weights.gemm
    grad = head_views(do.to(gemm), heads)
    used = (a if mask is None else a * mask).to(gemm)
    d_kv[:, :, l, 1] += weigh(used.transpose(-1, -2), grad)
    da = multiply(grad, part.values(l, heads).transpose(-1, -2)).to(weights.wide)
    if mask is not None:
        da.mul_(mask)
    # the scale comes after the 16-bit operands: float16 has few small numbers to spare
    ds = da.sub_((a * da).sum(-1, keepdim=True)).mul_(a).to(gemm)
    d_kv[:, :, l, 0].add_(weigh(ds.transpose(-1, -2), head_views(q, heads).expand_as(grad)), alpha=weights.scale)
    return weigh(ds, part.keys(l, heads)).to(weights.wide).mul_(weights.scale)


def attend_absorbed(x: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
    """Attention output with its projection but without that one's bias, ``[m, q, D]``, wide dtype.

    Args:
        x: the layer's normalised input, or in the first layer its queries; GEMM dtype.
    """
    assert part.absorbed is not None
    absorbed, heads = part.absorbed[l], weights.heads
    if absorbed.keys is None or absorbed.key_bias is None:
        a = probabilities(x, part, l, weights)
    else:
        scores = torch.baddbmm(absorbed.key_bias.unsqueeze(1), x, absorbed.keys.transpose(1, 2)).to(weights.wide)
        a = softmax_rows(scores.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3), part, weights)
    if masks is not None:
        a = a * attention_mask(masks, l, heads, part)
    o = a.permute(1, 2, 0, 3).flatten(2).to(weights.gemm) @ absorbed.values
    return o.to(weights.wide)


def head_views(x: Tensor, heads: int) -> Tensor:
    """``[m, R, D]`` seen as ``[H, m, R, K]``."""
    return x.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b`` of ``[H, m, ., .]``, head by head where the operands lie."""
    if out is None:
        out = a.new_empty(*a.shape[:-1], b.shape[-1])
    for h in range(a.shape[0]):
        torch.bmm(a[h], b[h], out=out[h])
    return out
