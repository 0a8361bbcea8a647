"""Attention of every head apart: a look inside, by the oracle, where `pair_attention` gives their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference, validation
from .call import Options, Params
from .masks import original_rows as count_original_rows
from .spec import DecoderWeights


@torch.no_grad()
def pair_attention_heads(
    memory: Tensor, queries: Tensor, weights: DecoderWeights, *, row_count: Tensor | None = None
) -> Tensor:
    """Attention weights of all pairs, layers and heads, at the rows of the memory before collapse.

    *Equivalent to* the ``a`` of every layer of `carzero.ops.pair_logits`; its mean over heads is `pair_attention`. All
    pairs are materialised, so this is for few of them. No gradient.

    Args:
        memory: ``[M, P, D]``.
        queries: ``[Q, D]``, same dtype.
        weights: of the decoder.
        row_count: int32 ``[M, P]`` as in `pair_logits`.

    Returns:
        ``[L, H, M, Q, P0]``, float32 (float64 for float64), P0 as in `pair_attention`.

    Raises:
        ValueError: as `pair_logits`.
    """
    function = "pair_attention_heads"
    validation.check_tensors(function, memory, queries, weights, False)
    validation.check_row_count(function, row_count, memory)
    options = Options(row_count=row_count, simr=True)
    with torch.autocast(queries.device.type, enabled=False):
        return reference.head_attention(
            memory, queries, Params.of(weights), options, count_original_rows(row_count, memory.shape[1])
        )
