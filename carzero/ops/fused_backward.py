"""Backward of the fused op: a block is run again, or read from the tape, then differentiated kernel by kernel.

No atomics: every element of a gradient is summed by one owner in a fixed order, so two runs agree in every bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carzero.kernels import gemm, rows
from carzero.kernels.attention_backward import attention_backward
from carzero.kernels.outer import add_outer
from carzero.kernels.philox import Dropout

from .call import Options, Params
from .fused import Fused, Kept, Run, head, layer, tile_memory
from .rng import Site
from .tape import Tape
from .tiled_backward import Gradients, add_to_queries, queries_backward, rows_backward


@dataclass(frozen=True)
class Sums:
    """Accumulators, float32: of weights and shared queries, and of each LayerNorm by program (`rows.norm_sums`)."""

    total: Gradients
    norm2: list[Tensor]
    norm3: list[Tensor]
    last: Tensor

    @classmethod
    def zeros(cls, params: Params, fused: Fused) -> Sums:
        t0 = fused.shared.t0
        fresh = [rows.norm_sums(t0.shape[1], t0.device) for _ in range(2 * len(params.layers) + 1)]
        return cls(Gradients.zeros(params, fused.shared), fresh[1::2], fresh[2::2], fresh[0])

    def fold_norms(self) -> None:
        """Add the LayerNorms' sums to their gradients."""
        weights = self.total.weights
        owners = [(weights.norm_weight, weights.norm_bias)]
        owners += [(layer.norm2_weight, layer.norm2_bias) for layer in weights.layers]
        owners += [(layer.norm3_weight, layer.norm3_bias) for layer in weights.layers]
        for (d_gamma, d_beta), parts in zip(owners, [self.last, *self.norm2, *self.norm3], strict=True):
            gamma, beta = parts.sum(0)
            d_gamma += gamma
            d_beta += beta


def pair_backward(
    grad: Tensor, memory: Tensor, queries: Tensor, params: Params, options: Options, tape: Tape | None = None
) -> list[Tensor]:
    """As `tiled_backward.pair_backward`: gradients of memory, queries and all weights, each in its own dtype."""
    fused = Fused.of(queries, params, options, memory)
    weights, last = fused.shared.weights, len(fused.layers) - 1
    sums = Sums.zeros(params, fused)
    grad = grad.float().contiguous()
    d_memory = memory.new_zeros(memory.shape)
    for tile in fused.tiles(memory, queries):
        part = tile_memory(memory, tile, fused)
        d_kv = torch.zeros_like(part.kv, dtype=torch.float32)
        for block in tile.blocks:
            run = Run.of(fused, part, tile, block)
            kept: list[Kept] = []
            if tape is None:
                state = run.start
                for l in range(last + 1):
                    state, known = layer(run, state, l)
                    kept.append(known)
                end = state.t
            else:
                end = block.take(tape.end[last]).flatten(0, 1)
            dt, g = _head_backward(run, sums, end, block.take(grad).flatten(0, 1))
            for l in range(last, -1, -1):
                known = kept.pop() if tape is None else _read(run, tape, l)
                dt, g, dq = _layer_backward(run, sums, known, dt, g, d_kv, l)
            add_to_queries(sums.total.t0, block.query, dt.unflatten(0, run.grid))
            add_to_queries(sums.total.q1, block.query, dq.unflatten(0, run.grid))
        if part.rows is None:
            d_rows = d_kv
        else:
            d_rows = rows_backward(d_kv, memory[tile.memory], part, part.rows, weights, sums.total.weights)
        d_memory[tile.memory] = d_rows.to(memory.dtype)
    sums.fold_norms()
    d_queries = queries_backward(queries, fused.shared, sums.total)
    flat = [g.to(p.dtype) for g, p in zip(sums.total.weights.flat(), params.flat())]
    return [d_memory, d_queries.to(queries.dtype), *flat]


def _layer_backward(
    run: Run, sums: Sums, known: Kept, dt: Tensor, g: Tensor, d_kv: Tensor, l: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the layer's input ``[R, D]``, of the branch before it, and of q ``[R, D]``.

    Args:
        dt: float32, of the layer's output; overwritten.
        g: dt under the mask of the layer's last branch, GEMM dtype.

    In layer 1 the input's gradient leaves out what flows through q, and there is no branch before it.
    """
    weights, own, dropout = run.fused.shared.weights, run.fused.layers[l].plain, run.dropout(l)
    total, d = sums.total.weights.layers[l], dt.shape[1]
    eps, scale = weights.eps, 1.0 if dropout is None else dropout.scale
    add_outer(total.linear2_weight, total.linear2_bias, g, known.h)
    # what is above 0 passed the ReLU and was kept
    dh = gemm.pull(g, own.w2, gate=known.h, gate_scale=scale)
    y = torch.empty_like(g)
    rows.norm_backward(
        gemm.pull(dh, own.w1), known.middle, *own.norm3, sums.norm3[l], eps=eps, dt=dt, y=y, g=g, g_dropout=dropout,
        g_site=Site.AFTER_OUT_PROJECTION,
    )  # fmt: skip
    add_outer(total.linear1_weight, total.linear1_bias, dh, y)
    add_outer(total.out_proj_weight, total.out_proj_bias, g, known.o)
    dq = torch.empty_like(g)
    attention_backward(
        gemm.pull(g, own.o_weight).unflatten(0, run.grid), known.q, run.keys(l), run.values(l),
        known.o.unflatten(0, run.grid), known.lse, heads=weights.heads, scale=weights.scale,
        count=run.part.row_count, d_q=dq.unflatten(0, run.grid), d_k=d_kv[:, :, l, 0], d_v=d_kv[:, :, l, 1],
        dropout=dropout,
    )  # fmt: skip
    if l == 0:
        return dt, g, dq
    rows.norm_backward(
        gemm.pull(dq, own.q_weight), known.start, *own.norm2, sums.norm2[l], eps=eps, dt=dt, y=y, g=g,
        g_dropout=run.dropout(l - 1), g_site=Site.AFTER_FFN,
    )  # fmt: skip
    add_outer(total.in_proj_weight[:d], total.in_proj_bias[:d], dq, y)
    return dt, g, dq


def _head_backward(run: Run, sums: Sums, end: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the last layer's output ``[R, D]``, float32, and it under its branch's mask, GEMM dtype.

    Args:
        end: ``[R, D]`` that output.
        grad: float32, of the logits ``[R]`` or of the representations ``[R, D]``.
    """
    weights = run.fused.shared.weights
    dropout: Dropout | None = None
    if run.fused.shared.options.simr:
        dy = grad
    else:
        dropout = run.dropout(0)
        dy = _maps_backward(run, sums, end, grad)
    g = end.new_empty(end.shape, dtype=weights.gemm)
    dt = rows.norm_backward(
        dy, end, *weights.norm, sums.last, eps=weights.eps, dy_dropout=dropout, g=g,
        g_dropout=run.dropout(len(weights.layers) - 1), g_site=Site.AFTER_FFN,
    )  # fmt: skip
    return dt, g


def _maps_backward(run: Run, sums: Sums, end: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the head's input ``[R, D]``; adds to those of its weights."""
    weights, total, dropout = run.fused.shared.weights, sums.total.weights, run.dropout(0)
    last = len(weights.head) - 2
    _, inputs = head(run, end)
    # a linear head's input is not kept: the LayerNorm that makes it
    x = inputs[-1] if inputs else rows.norm(end, *weights.norm, weights.gemm, eps=weights.eps, dropout=dropout)
    # the last map has one output: a product with a vector
    total.head[last].add_(grad.unsqueeze(0) @ x.float())
    total.head[last + 1].add_(grad.sum(0))
    dx = (grad.unsqueeze(1) * weights.head[last].float()).to(weights.gemm)
    scale = 1.0 if dropout is None else dropout.scale
    if inputs:
        dx = dx * (x > 0) * scale
    for index in range(last - 2, -1, -2):
        x = inputs[index // 2]
        add_outer(total.head[index], total.head[index + 1], dx, x)
        gate = x if index else None
        dx = gemm.pull(dx, weights.head[index], gate=gate, gate_scale=scale)
    return dx


def _read(run: Run, tape: Tape, l: int) -> Kept:
    """What `fused.layer` kept on the tape."""
    block, grid = run.block, run.grid

    def rows_of(field: Tensor | None, l: int) -> Tensor:
        assert field is not None
        return block.take(field[l]).flatten(0, 1)

    assert tape.lse is not None
    start = rows_of(tape.end, l - 1) if l else run.start.t
    q = rows_of(tape.query, l - 1).unflatten(0, grid) if l else run.q1
    lse = block.take(tape.lse[l]).transpose(1, 2).contiguous()
    return Kept(start, q, lse, rows_of(tape.attended, l), rows_of(tape.middle, l), rows_of(tape.hidden, l))
