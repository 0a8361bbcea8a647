"""Backward of the tiled op: each block is run again, then differentiated by hand.

By hand, because the weights' gradients are then accumulated in place by the GEMMs that make them: through
`torch.func.vjp` every block makes fresh gradients of all weights and adds them up. Keys, values and their gradients
exist for one tile; they are folded into the memory's and the weights' gradients before the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_core import TORCH_CORE, AttentionCore
from .call import Options, Params
from .masks import PairMasks
from .prepared import Prepared
from .reference import HEAD_SITES
from .rng import Site, keep_scale
from .tape import Tape
from .tiled import Shared, block_masks, block_start, present_rows, share, tile_memory, tiles
from .tiled_attention import TileMemory, layer_queries
from .tiles import Block


@dataclass(frozen=True)
class Gradients:
    """Accumulators in the wide dtype: of all weights, and of what the tiles share (t0 and q1, ``[Q, D]``)."""

    weights: Params
    t0: Tensor
    q1: Tensor

    @classmethod
    def zeros(cls, params: Params, shared: Shared) -> Gradients:
        wide = shared.weights.wide
        tensors = [t.new_zeros(t.shape, dtype=wide) for t in params.flat()]
        weights = Params.from_flat(tensors, len(params.layers), params.heads, params.eps)
        return cls(weights, torch.zeros_like(shared.t0), torch.zeros_like(shared.q1))


def pair_backward(
    grad: Tensor, memory: Tensor, queries: Tensor, params: Params, options: Options, tape: Tape | None = None,
    core: AttentionCore = TORCH_CORE,
) -> list[Tensor]:  # fmt: skip
    """Gradients of memory, queries and all weights, each in its own dtype; the key bias, which cancels, gets zeros.

    Args:
        grad: ``[N]`` of logits or ``[N, D]`` of representations, flat.
        tape: what the forward kept, or None to run the layers again from the start.
    """
    shared = share(queries, params, options, memory, core)
    weights = shared.weights
    total = Gradients.zeros(params, shared)
    grad = grad.to(weights.wide)
    d_memory = memory.new_zeros(memory.shape)
    last = len(weights.layers) - 1
    for tile in tiles(memory, queries, shared):
        part = tile_memory(memory, tile, shared)
        d_kv = torch.zeros_like(part.kv, dtype=weights.wide)
        for block in tile.blocks:
            steps = _Steps(shared, part, total.weights, d_kv, block_masks(shared, tile, block))
            t, q1 = block_start(shared, tile, block)
            saved: list[_Layer] = []
            if tape is None:
                for l in range(last + 1):
                    saved.append(steps.forward(t, q1, l))
                    t = steps.output(saved[-1], l)
                end = t
            else:
                end = block.take(tape.end[last])
            dt = steps.head_backward(end, block.take(grad))
            for l in range(last, -1, -1):
                if tape is None:
                    state = saved.pop()
                else:
                    start = block.take(tape.end[l - 1]) if l else t
                    state = (
                        steps.forward(start, q1, l) if tape.middle is None else steps.read(start, q1, l, block, tape)
                    )
                dt, dq = steps.backward(dt, state, l)
            add_to_queries(total.t0, block.query, dt)
            add_to_queries(total.q1, block.query, dq)
        rows = slice(0, part.kv.shape[1])
        if part.rows is None:
            d_rows = d_kv
        else:
            d_rows = rows_backward(d_kv, memory[tile.memory, rows], part, part.rows, weights, total.weights)
        d_memory[tile.memory, rows] = d_rows.to(memory.dtype)
    d_queries = queries_backward(queries, shared, total)
    flat = [g.to(p.dtype) for g, p in zip(total.weights.flat(), params.flat())]
    return [d_memory, d_queries.to(queries.dtype), *flat]


def add_to_queries(total: Tensor, query: Tensor, grid: Tensor) -> None:
    """Add ``[m, q, D]`` to the rows of ``[Q, D]`` that `query` names; the same bits on every run."""
    if query.shape[0] == 1:
        # no query twice, so that no two additions meet
        total.index_add_(0, query[0], grid.sum(0, dtype=total.dtype))
    else:
        # on a GPU this sorts first, where index_add_ adds in any order
        total.index_put_((query.flatten(),), grid.flatten(0, 1).to(total.dtype), accumulate=True)


def rows_backward(
    d_kv: Tensor, raw: Tensor, part: TileMemory, normed: Tensor, weights: Prepared, total: Params
) -> Tensor:
    """Gradient of a tile's memory rows ``[m, P, D]``; adds to the key, value and norm weights'."""
    d = raw.shape[-1]
    flat, x = d_kv.flatten(0, 1).to(weights.gemm), normed.flatten(0, 1)
    for l, layer in enumerate(total.layers):
        # keys have no bias
        layer.in_proj_bias[2 * d :] += d_kv[:, :, l, 1].sum((0, 1))
        _add_product(layer.in_proj_weight[d:], flat[:, l].flatten(1), x)
    dm = (flat.flatten(1) @ weights.kv_weight).to(weights.wide).view(raw.shape)
    dx = _norm_backward(
        dm, present_rows(raw, part.row_count, weights), weights.norm, (total.norm_weight, total.norm_bias), weights.eps
    )
    return dx if part.row_count is None else dx.masked_fill_((part.row_count == 0).unsqueeze(-1), 0.0)


def queries_backward(queries: Tensor, shared: Shared, total: Gradients) -> Tensor:
    """Gradient of the queries, from what all tiles added to LN0 of them and to the first layer's q."""
    weights, first, sums = shared.weights, shared.weights.layers[0], total.weights
    d = queries.shape[1]
    own = sums.layers[0]
    x = weights.layer_norm(shared.t0, first.norm2)
    dx = _linear_backward(total.q1, x, first.q_weight, own.in_proj_weight[:d], own.in_proj_bias[:d], weights)
    dt0 = total.t0 + _norm_backward(dx, shared.t0, first.norm2, (own.norm2_weight, own.norm2_bias), weights.eps)
    norm = sums.norm_weight, sums.norm_bias
    return _norm_backward(dt0, queries.to(weights.wide), weights.norm, norm, weights.eps)


def _linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, d_weight: Tensor, d_bias: Tensor, weights: Prepared
) -> Tensor:  # fmt: skip
    """Gradient of x for ``y = x W^T + b``; adds to those of W and b. Any leading axes."""
    leading = dy.shape[:-1]
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    d_bias += dy.sum(0)
    dy = dy.to(weights.gemm)
    _add_product(d_weight, dy, x.to(weights.gemm))
    return (dy @ weight).to(weights.wide).unflatten(0, leading)


def _add_product(d_weight: Tensor, dy: Tensor, x: Tensor) -> None:
    """``d_weight += dy^T x`` in the accumulator's dtype."""
    if dy.dtype == d_weight.dtype:
        d_weight.addmm_(dy.T, x)
    else:
        d_weight += dy.T @ x


def _norm_backward(
    dy: Tensor, x: Tensor, norm: tuple[Tensor, Tensor], d_norm: tuple[Tensor, Tensor], eps: float
) -> Tensor:
    """Gradient of x for ``y = LayerNorm(x)``; adds to those of its weight and bias."""
    shape = x.shape[-1:]
    _, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.contiguous(), x.contiguous(), shape, mean, rstd, *norm, [True, True, True]
    )
    d_norm[0].add_(dw)
    d_norm[1].add_(db)
    return dx


def _taken(field: Tensor | None, l: int, block: Block) -> Tensor:
    assert field is not None
    return block.take(field[l])


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


@dataclass(frozen=True)
class _Layer:
    """What a layer's backward needs of its forward, for one block.

    `start` and `middle` are the residual stream before attention and before the feed-forward network; `attention` is
    what the attention core saved, `o` its output before the projection; `y` the network's normalised input, `h` its
    hidden rows after ReLU and dropout.
    """

    start: Tensor
    q: Tensor
    attention: Any
    o: Tensor
    o_mask: Tensor | None
    middle: Tensor
    y: Tensor
    h: Tensor
    out_mask: Tensor | None


@dataclass(frozen=True)
class _Steps:
    """Forward and backward of single layers and of the head, on one block."""

    shared: Shared
    part: TileMemory
    total: Params
    d_kv: Tensor
    masks: PairMasks | None

    def _mask(self, site: Site, layer: int, width: int) -> Tensor | None:
        return None if self.masks is None else self.masks.features(site, layer, width)

    def forward(self, t: Tensor, q1: Tensor, l: int) -> _Layer:
        """Layer l up to its last GEMM, whose result no gradient needs."""
        weights, part = self.shared.weights, self.part
        layer, d = weights.layers[l], t.shape[-1]
        q = layer_queries(t, q1, l, weights)
        o, saved = self.shared.core.attend_saving(q, part, l, weights, self.masks)
        o_mask = self._mask(Site.AFTER_OUT_PROJECTION, l, d)
        middle = t + _times(weights.linear(o, layer.o_weight, layer.o_bias), o_mask)
        y = weights.layer_norm(middle, layer.norm3).to(weights.gemm)
        h = weights.linear(y, layer.w1, layer.b1).relu_()
        h = _times(h, self._mask(Site.FFN_HIDDEN, l, h.shape[-1])).to(weights.gemm)
        return _Layer(t, q, saved, o, o_mask, middle, y, h, self._mask(Site.AFTER_FFN, l, d))

    def read(self, t: Tensor, q1: Tensor, l: int, block: Block, tape: Tape) -> _Layer:
        """The same from a tape that holds the results of all GEMMs but the scores."""
        weights, part, masks = self.shared.weights, self.part, self.masks
        assert tape.query is not None
        q = block.take(tape.query[l - 1]) if l else q1.to(weights.gemm)
        middle = _taken(tape.middle, l, block)
        return _Layer(
            start=t,
            q=q,
            attention=self.shared.core.saved(q, part, l, weights, masks),
            o=_taken(tape.attended, l, block),
            o_mask=None if masks is None else masks.multipliers(_taken(tape.middle_kept, l, block)),
            middle=middle,
            y=weights.layer_norm(middle, weights.layers[l].norm3).to(weights.gemm),
            h=_taken(tape.hidden, l, block),
            out_mask=None if masks is None else masks.multipliers(_taken(tape.end_kept, l, block)),
        )

    def output(self, s: _Layer, l: int) -> Tensor:
        """The layer's output ``[m, q, D]``."""
        layer = self.shared.weights.layers[l]
        return s.middle + _times(self.shared.weights.linear(s.h, layer.w2, layer.b2), s.out_mask)

    def backward(self, dt: Tensor, s: _Layer, l: int) -> tuple[Tensor, Tensor]:
        """Gradients of the layer's input and of its q; in layer 1 the input's leaves out what flows through q."""
        weights, sums = self.shared.weights, self.total.layers[l]
        layer, d = weights.layers[l], dt.shape[-1]
        dh = _linear_backward(
            _times(dt, s.out_mask), s.h, layer.w2, sums.linear2_weight, sums.linear2_bias, weights
        )  # fmt: skip
        # what is above 0 passed the ReLU and was kept
        dh.mul_(s.h > 0)
        if self.masks is not None:
            dh.mul_(keep_scale(self.masks.p))
        dy = _linear_backward(dh, s.y, layer.w1, sums.linear1_weight, sums.linear1_bias, weights)
        dt = dt + _norm_backward(dy, s.middle, layer.norm3, (sums.norm3_weight, sums.norm3_bias), weights.eps)
        do = _linear_backward(
            _times(dt, s.o_mask), s.o, layer.o_weight, sums.out_proj_weight, sums.out_proj_bias, weights
        )  # fmt: skip
        core = self.shared.core
        dq = core.backward(do, s.q, s.o, s.attention, self.part, self.d_kv, l, weights, self.masks)
        if l == 0:
            return dt, dq
        x = weights.layer_norm(s.start, layer.norm2)
        dx = _linear_backward(dq, x, layer.q_weight, sums.in_proj_weight[:d], sums.in_proj_bias[:d], weights)
        return dt + _norm_backward(dx, s.start, layer.norm2, (sums.norm2_weight, sums.norm2_bias), weights.eps), dq

    def head_backward(self, t: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the last layer's output ``[m, q, D]`` from that of the results."""
        weights, sums = self.shared.weights, self.total
        if not self.shared.options.simr:
            mask = self._mask(Site.BEFORE_HEAD, 0, t.shape[-1])
            inputs = [_times(weights.layer_norm(t, weights.norm), mask)]
            maps = list(zip(weights.head[::2], weights.head[1::2]))
            for index, (weight, bias) in enumerate(maps[:-1]):
                x = weights.linear(inputs[-1], weight, bias).relu_()
                inputs.append(_times(x, self._mask(HEAD_SITES[index], 0, x.shape[-1])))
            grad = grad.unsqueeze(-1)
            for index in range(len(maps) - 1, -1, -1):
                x, (d_weight, d_bias) = inputs[index], sums.head[2 * index : 2 * index + 2]
                grad = _linear_backward(grad, x, maps[index][0], d_weight, d_bias, weights)
                if index:
                    grad.mul_(x > 0)
                    if self.masks is not None:
                        grad.mul_(keep_scale(self.masks.p))
            grad = _times(grad, mask)
        return _norm_backward(grad, t, weights.norm, (sums.norm_weight, sums.norm_bias), weights.eps)
