"""The op in tiles, in plain torch: the fallback on every device.

A tile of memories has its LayerNorm and all layers' keys and values made once; blocks of its pairs then run through
the decoder. Before the first layer a pair's state does not depend on its memory, so that layer's queries are made once
per query. Nothing of a pair outlives its block. docs/design.md has the identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_core import TORCH_CORE, AttentionCore
from .call import Options, Params
from .masks import PairMasks, original_rows
from .prepared import Prepared, PreparedLayer, prepare
from .reference import HEAD_SITES, dropped, row_bias, spread_rows
from .rng import Site
from .tape import Tape
from .tiled_attention import (
    TileMemory,
    absorb,
    absorption_pays,
    attended,
    layer_queries,
)
from .tiles import Block, Tile, plan


class Shared(NamedTuple):
    """What all tiles share.

    Args:
        t0: ``[Q, D]`` LN0 of the queries.
        q1: ``[Q, D]`` the first layer's queries.
        columns: P0, rows of a memory before collapse.
        core: what computes attention.
    """

    weights: Prepared
    options: Options
    t0: Tensor
    q1: Tensor
    columns: int
    core: AttentionCore = TORCH_CORE


def pair_forward(
    memory: Tensor, queries: Tensor, params: Params, options: Options, tape: Tape | None = None,
    core: AttentionCore = TORCH_CORE,
) -> Tensor:  # fmt: skip
    """Flat results of all pairs in the wide dtype: logits ``[N]``, or representations ``[N, D]``.

    Args:
        tape: to be filled for the backward, or None.
    """
    shared = share(queries, params, options, memory, core)
    weights = shared.weights
    shape = (_total(memory, queries, options), queries.shape[1])
    out = queries.new_empty(shape if options.simr else shape[:1], dtype=weights.wide)
    for tile in tiles(memory, queries, shared):
        # a full tape holds what absorption never makes: q and the attention output before its projection
        part = tile_memory(memory, tile, shared, may_absorb=tape is None or tape.middle is None)
        for block in tile.blocks:
            masks = block_masks(shared, tile, block)
            t, q1 = block_start(shared, tile, block)
            for l, layer in enumerate(weights.layers):
                if tape is not None and tape.middle is not None:
                    t = _taped_layer(t, q1, part, layer, l, weights, masks, block, tape, core)
                else:
                    t = _feed(t, attended(t, q1, part, l, weights, masks, core), layer, l, weights, masks)
                if tape is not None:
                    block.put(tape.end[l], t)
            t = weights.layer_norm(t, weights.norm)
            block.put(out, t if options.simr else _head(t, weights, masks))
    return out


def pair_attention(
    memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int, core: AttentionCore = TORCH_CORE
) -> Tensor:
    """``[L, N, columns]`` attention weights of all pairs, averaged over heads, at the original rows."""
    shared = share(queries, params, options, memory, core)
    weights = shared.weights
    shape = (len(weights.layers), _total(memory, queries, options), columns)
    out = queries.new_empty(shape, dtype=weights.wide)
    for tile in tiles(memory, queries, shared):
        part = tile_memory(memory, tile, shared)
        for block in tile.blocks:
            t, q1 = block_start(shared, tile, block)
            for l, layer in enumerate(weights.layers):
                o, mean = core.attend_mapped(layer_queries(t, q1, l, weights), part, l, weights)
                block.put(out[l], spread_rows(mean, part.row_count, columns))
                t = _feed(t, weights.linear(o, layer.o_weight, layer.o_bias), layer, l, weights, None)
    return out


def project_memory(memory: Tensor, params: Params, row_count: Tensor | None) -> Tensor:
    """All layers' keys and values ``[M, P, L, 2, D]``."""
    kv, _ = _project(memory, row_count, prepare(params, memory.dtype))
    return kv.to(memory.dtype)


def share(
    queries: Tensor, params: Params, options: Options, memory: Tensor, core: AttentionCore = TORCH_CORE,
    gemm: torch.dtype | None = None,
) -> Shared:  # fmt: skip
    """Prepared weights and the part of the decoder that depends on queries alone.

    Args:
        core: of the attention.
        gemm: dtype of the GEMM operands; None chooses what is fastest here.
    """
    weights = prepare(params, queries.dtype, gemm)
    t0 = weights.layer_norm(queries.to(weights.wide), weights.norm)
    first = weights.layers[0]
    q1 = weights.linear(weights.layer_norm(t0, first.norm2), first.q_weight, first.q_bias)
    columns = memory.shape[1]
    if options.dropout_p:
        columns = options.original_rows or original_rows(options.row_count, columns)
    return Shared(weights, options, t0, q1, columns, core)


def tiles(memory: Tensor, queries: Tensor, shared: Shared) -> Iterator[Tile]:
    """The call's tiles."""
    m, p = memory.shape[:2]
    weights, options = shared.weights, shared.options
    d, f = queries.shape[1], weights.layers[0].w1.shape[0]
    # residual stream and a GEMM's result, its operand, and the hidden rows
    pair_bytes = 2 * d * weights.wide.itemsize + (d + f) * weights.gemm.itemsize
    return plan(m, queries.shape[0], p, options.pairs, memory.device, options.tile_pairs, pair_bytes)


def tile_memory(memory: Tensor, tile: Tile, shared: Shared, *, may_absorb: bool = False) -> TileMemory:
    """Keys and values of a tile, and what its row counts do to the scores."""
    weights, count = shared.weights, shared.options.row_count
    rows, bias, present, normed = memory[tile.memory], None, None, None
    if count is not None:
        count = count[tile.memory]
        if rows.device.type == "cpu":
            # rows that no memory of the tile has; a GPU would have to wait for the answer
            used = (count > 0).any(0).nonzero()
            longest = int(used[-1]) + 1 if used.numel() else 1
            rows, count = rows[:, :longest], count[:, :longest]
        bias, present = row_bias(count, weights.wide)
    if shared.options.projected:
        kv = rows.to(weights.gemm)
    else:
        kv, normed = _project(rows, count, weights)
    absorbed = None
    if may_absorb:
        queries = sum(block.query.shape[1] for block in tile.blocks)
        shape = kv.shape[1], kv.shape[-1], weights.heads, len(weights.layers)
        absorbed = absorb(kv, weights) if absorption_pays(queries, *shape)[0] else None
    return TileMemory(kv, normed, count, bias, present, absorbed)


def block_masks(shared: Shared, tile: Tile, block: Block) -> PairMasks | None:
    """Dropout masks of a block's pairs."""
    return PairMasks.of(shared.options, tile.memory.unsqueeze(1), block.query, shared.columns, shared.weights.wide)


def block_start(shared: Shared, tile: Tile, block: Block) -> tuple[Tensor, Tensor]:
    """Residual stream ``[m, q, D]`` and q ``[m or 1, q, D]`` of a block before the first layer."""
    return shared.t0[block.query].expand(tile.memory.numel(), -1, -1), shared.q1[block.query]


def present_rows(rows: Tensor, count: Tensor | None, weights: Prepared) -> Tensor:
    """A tile's memory rows in the wide dtype, absent ones as zeros: they may hold anything."""
    rows = rows.to(weights.wide)
    return rows if count is None else rows.masked_fill((count == 0).unsqueeze(-1), 0.0)


def _project(rows: Tensor, count: Tensor | None, weights: Prepared) -> tuple[Tensor, Tensor]:
    """Keys and values ``[m, P, L, 2, D]`` in the GEMM dtype, and the normalised rows that they are made of."""
    m = weights.layer_norm(present_rows(rows, count, weights), weights.norm).to(weights.gemm)
    kv = F.linear(m, weights.kv_weight, weights.kv_bias)
    return kv.unflatten(-1, (len(weights.layers), 2, rows.shape[-1])), m


def _total(memory: Tensor, queries: Tensor, options: Options) -> int:
    return memory.shape[0] * queries.shape[0] if options.pairs is None else options.pairs.shape[0]


def _feed(t: Tensor, o: Tensor, layer: PreparedLayer, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
    """The rest of a layer after its attention: feed-forward network and both residuals."""
    t = t + dropped(o, masks, Site.AFTER_OUT_PROJECTION, l)
    h = weights.linear(weights.layer_norm(t, layer.norm3), layer.w1, layer.b1).relu_()
    h = dropped(h, masks, Site.FFN_HIDDEN, l)
    return t.add_(dropped(weights.linear(h, layer.w2, layer.b2), masks, Site.AFTER_FFN, l))


def _taped_layer(
    t: Tensor, q1: Tensor, part: TileMemory, layer: PreparedLayer, l: int, weights: Prepared,
    masks: PairMasks | None, block: Block, tape: Tape, core: AttentionCore,
) -> Tensor:  # fmt: skip
    """One layer, all of whose GEMM results are kept."""
    q = layer_queries(t, q1, l, weights)
    if l:
        _keep(tape.query, l - 1, block, q)
    o = core.attend(q, part, l, weights, masks)
    _keep(tape.attended, l, block, o)
    o = weights.linear(o, layer.o_weight, layer.o_bias)
    t = t + _taped_mask(o, masks, Site.AFTER_OUT_PROJECTION, l, block, tape.middle_kept)
    _keep(tape.middle, l, block, t)
    h = weights.linear(weights.layer_norm(t, layer.norm3), layer.w1, layer.b1).relu_()
    h = dropped(h, masks, Site.FFN_HIDDEN, l).to(weights.gemm)
    _keep(tape.hidden, l, block, h)
    h = weights.linear(h, layer.w2, layer.b2)
    return t + _taped_mask(h, masks, Site.AFTER_FFN, l, block, tape.end_kept)


def _keep(field: Tensor | None, l: int, block: Block, value: Tensor) -> None:
    assert field is not None
    block.put(field[l], value)


def _taped_mask(
    x: Tensor, masks: PairMasks | None, site: Site, l: int, block: Block, kept: Tensor | None
) -> Tensor:  # fmt: skip
    if masks is None:
        return x
    stay = masks.features_kept(site, l, x.shape[-1])
    _keep(kept, l, block, stay)
    return x.mul_(masks.multipliers(stay))


def _head(simr: Tensor, weights: Prepared, masks: PairMasks | None) -> Tensor:
    """Logits ``[m, q]``."""
    x = dropped(simr, masks, Site.BEFORE_HEAD, 0)
    maps = list(zip(weights.head[::2], weights.head[1::2]))
    for index, (weight, bias) in enumerate(maps):
        x = weights.linear(x, weight, bias)
        if index < len(maps) - 1:
            x = dropped(x.relu_(), masks, HEAD_SITES[index], 0)
    return x.squeeze(-1)
