"""The op in tiles, by the Triton kernels: what stands between two GEMMs is in the registers of one of them.

The order of the work is `tiled`'s, whose parts on the memories' and the queries' side it uses. Of a pair's row, each
layer writes and reads the residual stream (float32), its shifted copy in the GEMM dtype with its statistics, q, the
attention output and the hidden row; a LayerNorm never passes through memory. docs/kernels.md has the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from carzero.kernels import gemm, rows
from carzero.kernels.attention import attention_forward
from carzero.kernels.epilogue import State
from carzero.kernels.philox import Dropout

from .call import Options, Params
from .fused_weights import FusedLayer, fuse
from .masks import PairMasks
from .reference import HEAD_SITES, row_bias, spread_rows
from .rng import Site, keep_scale, threshold
from .tape import Tape
from .tiled import Shared, block_masks, share
from .tiled_attention import TileMemory, absorb, absorption_pays, attended
from .tiles import Block, Tile, plan

# A kernel should run longer than its launch takes, and a block's rows fill the device's programs several times.
# Estimate, to be measured: 16,384 rows are 768 tiles of 128 x 128.
_BLOCK_PAIRS = 16384


@dataclass(frozen=True)
class Fused:
    """What all tiles share: `tiled.Shared`, the folded weights, and the state before the first layer, a row a query."""

    shared: Shared
    layers: list[FusedLayer]
    start: State

    @classmethod
    def of(cls, queries: Tensor, params: Params, options: Options, memory: Tensor) -> Fused:
        # kernels read vectors and matrices as they lie
        params = params.rebuilt([t.contiguous() for t in params.flat()])
        shared = share(queries, params, options, memory, gemm=queries.dtype)
        shift = shared.t0.mean(-1)
        away = shared.t0 - shift.unsqueeze(-1)
        # one tile of all columns
        partial = torch.stack((away.sum(-1), away.square().sum(-1)), -1).unsqueeze(1)
        start = State(shared.t0, None, shift, partial, queries.shape[1])
        return cls(shared, fuse(params, shared.weights), start)

    def tiles(self, memory: Tensor, queries: Tensor) -> Iterator[Tile]:
        """The call's tiles."""
        options, (m, p) = self.shared.options, memory.shape[:2]
        # the interpreter pays by the program, not by the row
        pairs = options.tile_pairs or _BLOCK_PAIRS
        return plan(m, queries.shape[0], p, options.pairs, memory.device, pairs, 1)


@dataclass(frozen=True)
class Run:
    """One block of pairs ``[m, q]`` and everything its rows ``R = m q`` meet."""

    fused: Fused
    part: TileMemory
    block: Block
    dropouts: list[Dropout] | None
    masks: PairMasks | None
    start: State
    q1: Tensor

    @classmethod
    def of(cls, fused: Fused, part: TileMemory, tile: Tile, block: Block) -> Run:
        shared = fused.shared
        query = block.query.contiguous()
        index = query.flatten()
        start = State(*(t[index] if isinstance(t, Tensor) else t for t in fused.start))
        q1 = shared.q1[query].to(shared.weights.gemm)
        dropouts = _dropouts(shared, tile, block, len(fused.layers))
        return cls(fused, part, block, dropouts, block_masks(shared, tile, block), start, q1)

    @property
    def grid(self) -> tuple[int, int]:
        """m and q."""
        return self.part.kv.shape[0], self.block.query.shape[1]

    def dropout(self, l: int) -> Dropout | None:
        return None if self.dropouts is None else self.dropouts[l]

    def keys(self, l: int) -> Tensor:
        """``[m, P, D]``, a view."""
        return self.part.kv[:, :, l, 0]

    def values(self, l: int) -> Tensor:
        return self.part.kv[:, :, l, 1]


@dataclass(frozen=True)
class Kept:
    """What a layer's backward needs of its forward: rows ``[R, ...]``.

    Args:
        start, middle: the residual stream before attention and before the feed-forward network, float32.
        q: ``[m or 1, q, D]``.
        lse: log-sum-exps of the scores, float32 ``[m, H, q]``.
        o: attention output before its projection.
        h: hidden rows after ReLU and dropout.
    """

    start: Tensor
    q: Tensor
    lse: Tensor
    o: Tensor
    middle: Tensor
    h: Tensor


def pair_forward(memory: Tensor, queries: Tensor, params: Params, options: Options, tape: Tape | None = None) -> Tensor:
    """As `tiled.pair_forward`: flat results of all pairs in float32, logits ``[N]`` or representations ``[N, D]``."""
    fused = Fused.of(queries, params, options, memory)
    total = memory.shape[0] * queries.shape[0] if options.pairs is None else options.pairs.shape[0]
    shape = (total, queries.shape[1]) if options.simr else (total,)
    out = queries.new_empty(shape, dtype=torch.float32)
    for tile in fused.tiles(memory, queries):
        part = tile_memory(memory, tile, fused, may_absorb=tape is None)
        for block in tile.blocks:
            run = Run.of(fused, part, tile, block)
            state = run.start
            for l in range(len(fused.layers)):
                if part.absorbed is None:
                    state, _ = layer(run, state, l, tape)
                else:
                    state = _absorbed_layer(run, state, l)
            result = _simr(run, state.t) if options.simr else head(run, state.t)[0]
            block.put(out, result.unflatten(0, run.grid))
    return out


def pair_attention(memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int) -> Tensor:
    """As `tiled.pair_attention`: ``[L, N, columns]`` attention weights, averaged over heads, at the original rows."""
    fused = Fused.of(queries, params, options, memory)
    total = memory.shape[0] * queries.shape[0] if options.pairs is None else options.pairs.shape[0]
    out = queries.new_empty((len(fused.layers), total, columns), dtype=torch.float32)
    for tile in fused.tiles(memory, queries):
        part = tile_memory(memory, tile, fused)
        for block in tile.blocks:
            run = Run.of(fused, part, tile, block)
            state = run.start
            for l in range(len(fused.layers)):
                maps = out.new_empty(*run.grid, part.kv.shape[1])
                state, _ = layer(run, state, l, None, maps)
                block.put(out[l], spread_rows(maps, part.row_count, columns))
    return out


def tile_memory(memory: Tensor, tile: Tile, fused: Fused, *, may_absorb: bool = False) -> TileMemory:
    """Keys and values of a tile, as `tiled.tile_memory`."""
    shared = fused.shared
    # what is gathered from a permuted tensor may be permuted as well
    weights, count, taken = shared.weights, shared.options.row_count, memory[tile.memory].contiguous()
    bias = present = normed = absorbed = None
    if count is not None:
        count = count[tile.memory].contiguous()
        bias, present = row_bias(count, torch.float32)
    if shared.options.projected:
        kv = taken
    else:
        normed = rows.norm(taken, *weights.norm, weights.gemm, eps=weights.eps, present=count)
        kv = torch.nn.functional.linear(normed, weights.kv_weight, weights.kv_bias)
        kv = kv.unflatten(-1, (len(weights.layers), 2, taken.shape[-1]))
    if may_absorb:
        queries = sum(block.query.shape[1] for block in tile.blocks)
        shape = kv.shape[1], kv.shape[-1], weights.heads, len(weights.layers)
        absorbed = absorb(kv, weights) if absorption_pays(queries, *shape)[0] else None
    return TileMemory(kv, normed, count, bias, present, absorbed)


def layer(
    run: Run, state: State, l: int, tape: Tape | None = None, maps: Tensor | None = None
) -> tuple[State, Kept]:  # fmt: skip
    """One layer: the residual stream after it, and what its backward needs.

    Args:
        tape: to hold what is kept, or None.
        maps: ``[m, q, P]`` to hold the attention weights, or None.
    """
    weights, own, dropout = run.fused.shared.weights, run.fused.layers[l], run.dropout(l)
    m, width = run.grid, state.t.shape[1]
    slot = Slots(tape, l, run)
    q = run.q1
    if l:
        q = gemm.normed(state, *own.q, eps=weights.eps, out=slot("query", l - 1)).view(*m, width)
    o, lse = slot("attended"), q.new_empty(m[0], weights.heads, m[1], dtype=torch.float32)
    if o is None:
        o = q.new_empty(m[0] * m[1], width)
    attention_forward(
        q, run.keys(l), run.values(l), heads=weights.heads, scale=weights.scale, count=run.part.row_count,
        out=o.view(*m, width), lse=lse, maps=maps, dropout=dropout,
    )  # fmt: skip
    middle = gemm.add_branch(
        state, o, own.plain.o_weight, own.o_bias, eps=weights.eps, emit=True, dropout=dropout,
        site=Site.AFTER_OUT_PROJECTION, out=slot("middle"),
    )  # fmt: skip
    h = gemm.normed(
        middle, *own.hidden, eps=weights.eps, relu=True, dropout=dropout, site=Site.FFN_HIDDEN, out=slot("hidden")
    )  # fmt: skip
    end = gemm.add_branch(
        middle, h, own.plain.w2, own.b2, eps=weights.eps, emit=l + 1 < len(weights.layers), dropout=dropout,
        site=Site.AFTER_FFN, out=slot("end"),
    )  # fmt: skip
    kept = Kept(state.t, q, lse, o, middle.t, h)
    slot.keep(kept, end)
    return end, kept


class Slots:
    """A tape's places for one layer of a block: views to write to where its pairs follow each other."""

    def __init__(self, tape: Tape | None, l: int, run: Run) -> None:
        self.tape, self.l, self.run = tape, l, run

    def __call__(self, name: str, l: int | None = None) -> Tensor | None:
        """``[R, ...]`` of a field, or None where the result has to be copied there, or is not kept."""
        if self.tape is None or self.run.block.start is None:
            return None
        return self.run.block.take(getattr(self.tape, name)[self.l if l is None else l]).flatten(0, 1)

    def keep(self, kept: Kept, end: State) -> None:
        """Copy what was not written in its place."""
        if self.tape is None:
            return
        block, l, grid = self.run.block, self.l, self.run.grid
        assert self.tape.lse is not None
        block.put(self.tape.lse[l], kept.lse.transpose(1, 2))
        if block.start is not None:
            return
        if l:
            block.put(self.tape.query[l - 1], kept.q)  # type: ignore[index]
        for field, value in (("attended", kept.o), ("middle", kept.middle), ("hidden", kept.h), ("end", end.t)):
            block.put(getattr(self.tape, field)[l], value.unflatten(0, grid))


def head(run: Run, t: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[R]``, and the inputs of the head's maps ``[R, ...]`` from the first on, in the GEMM dtype.

    A linear head makes no input: its logits come out of the LayerNorm.
    """
    weights, dropout = run.fused.shared.weights, run.dropout(0)
    maps = list(zip(weights.head[::2], weights.head[1::2]))
    last, last_bias = maps[-1]
    if len(maps) == 1:
        return rows.norm_dot(t, *weights.norm, last[0], last_bias, eps=weights.eps, dropout=dropout), []
    inputs = [rows.norm(t, *weights.norm, weights.gemm, eps=weights.eps, dropout=dropout)]
    for index, (weight, bias) in enumerate(maps[:-1]):
        inputs.append(gemm.affine(inputs[-1], weight, bias.float(), relu=True, dropout=dropout, site=HEAD_SITES[index]))
    return rows.dot(inputs[-1], last[0], last_bias), inputs


def _simr(run: Run, t: Tensor) -> Tensor:
    weights = run.fused.shared.weights
    return rows.norm(t, *weights.norm, torch.float32, eps=weights.eps)


def _absorbed_layer(run: Run, state: State, l: int) -> State:
    """A layer whose output projection is part of the values: its attention is `tiled_attention`'s."""
    shared, own, dropout = run.fused.shared, run.fused.layers[l], run.dropout(l)
    weights = shared.weights
    t = state.t.unflatten(0, (-1, run.grid[1])).expand(*run.grid, -1)
    branch = attended(t, run.q1, run.part, l, weights, run.masks, shared.core).flatten(0, 1)
    middle = gemm.add_finished(
        state, branch, weights.gemm, eps=weights.eps, dropout=dropout, site=Site.AFTER_OUT_PROJECTION
    )
    h = gemm.normed(middle, *own.hidden, eps=weights.eps, relu=True, dropout=dropout, site=Site.FFN_HIDDEN)
    return gemm.add_branch(
        middle, h, own.plain.w2, own.b2, eps=weights.eps, emit=l + 1 < len(weights.layers), dropout=dropout,
        site=Site.AFTER_FFN,
    )  # fmt: skip


def _dropouts(shared: Shared, tile: Tile, block: Block, layers: int) -> list[Dropout] | None:
    """Masks of each layer; the head's are those of layer 0."""
    options = shared.options
    if options.dropout_p == 0.0:
        return None
    assert options.seed is not None, "validated at the public door"
    memory, query = tile.memory + options.memory_offset, block.query.contiguous() + options.query_offset
    t, scale = threshold(options.dropout_p), keep_scale(options.dropout_p)
    seed = options.seed.reshape(1)
    return [Dropout(seed, t, scale, l, options.direction, memory, query, shared.columns) for l in range(layers)]
