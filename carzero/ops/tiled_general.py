"""The tiled op for other decoders than CARZero's, in plain torch; they are told apart in docs/drop-in.md.

The equations are the reference's, on tiles: keys and values of a tile of memories are made once, blocks of its pairs
run through the decoder, and what does not depend on the memory (all of a query until its first attention to one) is
computed once per block, not per pair. The backward runs each block again and lets torch differentiate it: only inputs,
weights and one block exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .call import Options, Params, result_axes, wide_dtype
from .masks import PairMasks, original_rows
from .prepared import gemm_dtype
from .tiles import Block, Tile, plan


class _Part(NamedTuple):
    """One tile's memories: int64 indices ``[m]``, row counts ``[m, P]`` or None, P0."""

    memory: Tensor
    row_count: Tensor | None
    columns: int


def pair_forward(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Tensor:
    """Results of all pairs ``[N, ...]`` in the wide dtype: logits, or representations."""
    cast = _cast(params, queries)
    trailing = result_axes(params.structure, queries.shape, options.simr)
    out = queries.new_empty(_total(memory, queries, options), *trailing, dtype=wide_dtype(queries.dtype))
    for tile, part in _tiles(memory, queries, params, options):
        kv = _keys_values(memory[part.memory], part.row_count, cast, options)
        for block in tile.blocks:
            block.put(out, _block(kv, queries[block.query], cast, options, part, block))
    return out


def pair_attention(memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int) -> Tensor:
    """``[L, N, columns]`` (``[L, N, T, columns]``) attention weights, averaged over heads, at the original rows."""
    tokens = queries.shape[1:-1]
    total = _total(memory, queries, options)
    out = queries.new_empty(len(params.layers), total, *tokens, columns, dtype=wide_dtype(queries.dtype))
    cast = _cast(params, queries)
    for tile, part in _tiles(memory, queries, params, options):
        kv = _keys_values(memory[part.memory], part.row_count, cast, options)
        for block in tile.blocks:
            maps: list[Tensor] = []
            t, mask = _start(queries[block.query], cast, options, block)
            reference.decode(t, kv, cast, part.row_count, mask, None, maps)
            for l, every in enumerate(maps):
                found = every.mean(1)
                spread = reference.spread_rows(found.flatten(1, 2).unsqueeze(0), part.row_count, columns).squeeze(0)
                block.put(out[l], spread.unflatten(1, (found.shape[1], *tokens)))
    return out


def project_memory(memory: Tensor, params: Params, row_count: Tensor | None) -> Tensor:
    """All layers' keys and values ``[M, P, L, 2, D]``."""
    return _keys_values(memory, row_count, _cast(params, memory), Options()).to(memory.dtype)


def pair_backward(grad: Tensor, memory: Tensor, queries: Tensor, params: Params, options: Options) -> list[Tensor]:
    """Gradients of memory, queries and all weights, each in its own dtype.

    Args:
        grad: ``[N, ...]`` of the results.
    """
    wide = wide_dtype(queries.dtype)
    grad = grad.to(wide)
    masters = [p.to(wide) for p in params.flat()]
    d_weights = [torch.zeros_like(p) for p in masters]
    d_memory = torch.zeros_like(memory)
    d_queries = torch.zeros_like(queries, dtype=wide)
    for tile, part in _tiles(memory, queries, params, options):

        def keys_values(rows: Tensor, *tensors: Tensor, part: _Part = part) -> Tensor:
            return _keys_values(rows, part.row_count, _cast(params.rebuilt(tensors), queries), options)

        rows = memory[part.memory].to(wide)
        # torch.func works where autograd's own recording is off, as it is inside an op
        kv, pull_rows, *_ = torch.func.vjp(keys_values, rows, *masters)
        d_kv = torch.zeros_like(kv, dtype=wide)
        for block in tile.blocks:

            def run(kv: Tensor, q: Tensor, *tensors: Tensor, part: _Part = part, block: Block = block) -> Tensor:
                return _block(kv, q, _cast(params.rebuilt(tensors), queries), options, part, block)

            _, pull, *_ = torch.func.vjp(run, kv, queries[block.query].to(wide), *masters)
            g_kv, g_q, *g_weights = pull(block.take(grad))
            d_kv += g_kv
            d_queries.index_put_((block.query,), g_q, accumulate=True)
            _add(d_weights, g_weights)
        g_rows, *g_weights = pull_rows(d_kv.to(kv.dtype))
        d_memory[part.memory] = g_rows.to(memory.dtype)
        _add(d_weights, g_weights)
    return [d_memory, d_queries.to(queries.dtype), *(g.to(p.dtype) for g, p in zip(d_weights, params.flat()))]


def _tiles(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Iterator[tuple[Tile, _Part]]:
    tokens = 1 if queries.dim() == 2 else queries.shape[1]
    d, f = queries.shape[-1], params.layers[0].linear1_weight.shape[0]
    pair_bytes = tokens * (3 * d + f) * wide_dtype(queries.dtype).itemsize
    # a block's rows are pairs times tokens
    wanted = options.tile_pairs or (max(1, 1024 // tokens) if queries.device.type == "cpu" else 0)
    count, columns = options.row_count, memory.shape[1]
    if options.dropout_p:
        columns = options.original_rows or original_rows(count, columns)
    shape = memory.shape[0], queries.shape[0], memory.shape[1]
    for tile in plan(*shape, options.pairs, memory.device, wanted, pair_bytes):
        yield tile, _Part(tile.memory, None if count is None else count[tile.memory], columns)


def _cast(params: Params, queries: Tensor) -> Params:
    """Matrices and their biases in the GEMM dtype, norms in the wide one."""
    wide, (gemm, _) = wide_dtype(queries.dtype), gemm_dtype(queries.dtype, queries.device)
    layers = tuple(
        layer._replace(
            **{
                name: t.to(wide if name.startswith("norm") else gemm)
                for name, t in layer._asdict().items()
                if t is not None
            }
        )
        for layer in params.layers
    )
    return params._replace(
        norm_weight=params.norm_weight.to(wide),
        norm_bias=params.norm_bias.to(wide),
        layers=layers,
        head=tuple(t.to(gemm) for t in params.head),
    )


def _keys_values(rows: Tensor, row_count: Tensor | None, params: Params, options: Options) -> Tensor:
    """Keys and values ``[m, P, L, 2, D]`` of a tile's memories, GEMM dtype."""
    gemm = params.layers[0].in_proj_weight.dtype
    if options.projected:
        return rows.to(gemm)
    return reference.project(reference.memory_rows(rows, row_count, params), params).to(gemm)


def _start(queries: Tensor, params: Params, options: Options, block: Block) -> tuple[Tensor, Tensor | None]:
    """A block's queries ``[1 or m, q, T, D]`` before the first layer, and which tokens are there."""
    mask = None if options.query_mask is None else options.query_mask[block.query]
    return reference.start(queries, mask, params), mask


def _block(
    kv: Tensor, queries: Tensor, params: Params, options: Options, part: _Part, block: Block
) -> Tensor:  # fmt: skip
    """Results ``[m, q, ...]`` of a block."""
    t, mask = _start(queries, params, options, block)
    masks = PairMasks.of(options, part.memory.unsqueeze(1), block.query, part.columns, t.dtype)
    masks = None if masks is None else masks.for_tokens(t.shape[2], params)
    simr = reference.decode(t, kv, params, part.row_count, mask, masks)
    if options.simr:
        return reference.read_out(simr, params, mask)
    return reference.head(simr, params, masks, mask)


def _total(memory: Tensor, queries: Tensor, options: Options) -> int:
    return memory.shape[0] * queries.shape[0] if options.pairs is None else options.pairs.shape[0]


def _add(totals: list[Tensor], more: list[Tensor]) -> None:
    for total, value in zip(totals, more):
        total += value
