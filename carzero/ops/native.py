"""Calls into the native CPU extension, which wants contiguous tensors and a plain seed."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Options, Params


def pair_forward(memory: Tensor, queries: Tensor, params: Params, options: Options, packed: Tensor | None) -> Tensor:
    """float32 results ``[M, Q]``, ``[N]``, ``[M, Q, D]`` or ``[N, D]``."""
    return torch.ops.carzero_native.pair_forward(*_arguments(memory, queries, params, options, packed), options.simr)


def pair_backward(
    grad: Tensor, memory: Tensor, queries: Tensor, params: Params, options: Options, packed: Tensor | None
) -> list[Tensor]:
    """Gradients of memory, queries and all weights, in their dtypes."""
    arguments = _arguments(memory, queries, params, options, packed)
    return torch.ops.carzero_native.pair_backward(grad.to(torch.float32).contiguous(), *arguments, options.simr)


def pair_attention(
    memory: Tensor, queries: Tensor, params: Params, options: Options, packed: Tensor | None, original_rows: int
) -> Tensor:
    """float32 ``[L, M, Q, original_rows]`` (``[L, N, original_rows]``)."""
    memory, projected, queries, row_count, pairs, flat, packed, heads, eps, *_ = _arguments(
        memory, queries, params, options, packed
    )
    return torch.ops.carzero_native.pair_attention(
        memory, projected, queries, row_count, pairs, flat, packed, heads, eps, options.tile_pairs, original_rows
    )


def pack_weights(params: list[Tensor], heads: int, compute: torch.dtype) -> Tensor:
    """The extension's own layout, opaque uint8."""
    return torch.ops.carzero_native.pack_weights([p.contiguous() for p in params], heads, compute)


def _arguments(memory: Tensor, queries: Tensor, params: Params, options: Options, packed: Tensor | None) -> tuple:
    return (
        memory.contiguous(), options.projected, queries.contiguous(),
        None if options.row_count is None else options.row_count.contiguous(),
        None if options.pairs is None else options.pairs.contiguous(),
        [p.contiguous() for p in params.flat()], packed, params.heads, params.eps, options.dropout_p,
        0 if options.seed is None else int(options.seed), options.direction, options.memory_offset,
        options.query_offset, options.tile_pairs,
    )  # fmt: skip
