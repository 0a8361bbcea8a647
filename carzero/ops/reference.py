"""The op as its equation reads: every pair materialised, differentiated by torch. The oracle, never a speed baseline.

Shapes: m [M, P, D] memory; t [M, Q, D] one row per (memory, query) pair, or [N, 1, D] for a list of pairs, in which
case the memory is gathered to one per pair. Computes in float64 for float64 inputs and in float32 otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Layer, Options, Params, wide_dtype
from .masks import PairMasks, original_rows
from .rng import Site


def pair_logits(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Tensor:
    """``[M, Q]`` (``[N]``) logits, differentiable any number of times."""
    simr, masks = _simr(memory, queries, params, options)
    x = dropped(simr, masks, Site.BEFORE_HEAD, 0)
    last = len(params.head) - 2
    for index in range(0, len(params.head), 2):
        weight, bias = params.head[index : index + 2]
        x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        if index < last:
            x = dropped(torch.relu(x), masks, HEAD_SITES[index // 2], 0)
    logits = x.squeeze(-1)
    return logits if options.pairs is None else logits.squeeze(-1)


def pair_simr(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Tensor:
    """``[M, Q, D]`` (``[N, D]``) similarity representations."""
    simr, _ = _simr(memory, queries, params, options)
    return simr if options.pairs is None else simr.squeeze(1)


def pair_attention(memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int) -> Tensor:
    """``[L, M, Q, columns]`` (``[L, N, columns]``) attention weights, averaged over heads, at the original rows."""
    maps: list[Tensor] = []
    _simr(memory, queries, params, options, maps)
    stacked = torch.stack(maps)
    row_count = options.row_count
    if row_count is not None and options.pairs is not None:
        row_count = row_count[options.pairs[:, 0]]
    spread = spread_rows(stacked, row_count, columns)
    return spread if options.pairs is None else spread.squeeze(2)


HEAD_SITES = (Site.HEAD_HIDDEN_1, Site.HEAD_HIDDEN_2, Site.HEAD_HIDDEN_3)


def _simr(
    memory: Tensor, queries: Tensor, params: Params, options: Options, maps: list[Tensor] | None = None
) -> tuple[Tensor, PairMasks | None]:
    wide = wide_dtype(queries.dtype)
    params = Params.from_flat([p.to(wide) for p in params.flat()], len(params.layers), params.heads, params.eps)
    count, heads = options.row_count, params.heads
    columns = options.original_rows or original_rows(count, memory.shape[1])

    if options.projected:
        kv = memory.to(wide)
    else:
        m = memory.to(wide)
        if count is not None:
            # an absent row may hold anything
            m = m.masked_fill((count == 0).unsqueeze(-1), 0.0)
        kv = project(layer_norm(m, params.norm_weight, params.norm_bias, params.eps), params)
    t = layer_norm(queries.to(wide), params.norm_weight, params.norm_bias, params.eps)

    if options.pairs is None:
        index_m = torch.arange(memory.shape[0], device=memory.device).unsqueeze(1)
        index_q = torch.arange(queries.shape[0], device=memory.device).unsqueeze(0)
        t = t.unsqueeze(0).expand(memory.shape[0], -1, -1)
    else:
        index_m, index_q = options.pairs[:, :1], options.pairs[:, 1:]
        kv, t = kv[index_m.squeeze(1)], t[index_q]
        count = None if count is None else count[index_m.squeeze(1)]
    masks = PairMasks.of(options, index_m, index_q, columns, wide)

    for l, layer in enumerate(params.layers):
        k, v = (split_heads(kv[:, :, l, i], heads) for i in (0, 1))
        x = layer_norm(t, layer.norm2_weight, layer.norm2_bias, params.eps)
        o, weights = _attention(x, k, v, layer, l, count, masks)
        t = t + dropped(F.linear(o, layer.out_proj_weight, layer.out_proj_bias), masks, Site.AFTER_OUT_PROJECTION, l)
        y = layer_norm(t, layer.norm3_weight, layer.norm3_bias, params.eps)
        h = torch.relu(F.linear(y, layer.linear1_weight, layer.linear1_bias))
        h = dropped(h, masks, Site.FFN_HIDDEN, l)
        t = t + dropped(F.linear(h, layer.linear2_weight, layer.linear2_bias), masks, Site.AFTER_FFN, l)
        if maps is not None:
            maps.append(weights.mean(1))
    return layer_norm(t, params.norm_weight, params.norm_bias, params.eps), masks


def _attention(
    x: Tensor, k: Tensor, v: Tensor, layer: Layer, l: int, row_count: Tensor | None, masks: PairMasks | None
) -> tuple[Tensor, Tensor]:
    """Output ``[M, Q, D]`` and softmax weights ``[M, H, Q, P]`` of one layer."""
    d = x.shape[-1]
    q = split_heads(F.linear(x, layer.in_proj_weight[:d], layer.in_proj_bias[:d]), k.shape[1])
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if row_count is not None:
        bias, present = row_bias(row_count, scores.dtype)
        weights = torch.softmax(scores + bias[:, None, None], -1) * present[:, None, None, None]
    else:
        weights = torch.softmax(scores, -1)
    used = weights if masks is None else weights * masks.attention(l, k.shape[1], k.shape[2], row_count)
    return (used @ v).transpose(1, 2).flatten(2), weights


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def project(m: Tensor, params: Params) -> Tensor:
    """All layers' keys and values ``[M, P, L, 2, D]`` of normalised memory rows; no key bias (softmax cancels it)."""
    d = m.shape[-1]
    kv = []
    for layer in params.layers:
        key, value = layer.in_proj_weight[d : 2 * d], layer.in_proj_weight[2 * d :]
        kv.append(torch.stack((F.linear(m, key), F.linear(m, value, layer.in_proj_bias[2 * d :])), 2))
    return torch.stack(kv, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[M, R, D]`` -> ``[M, H, R, K]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def row_bias(row_count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added to the scores ``[M, P]``, log n and -inf where n = 0, and which memories ``[M]`` have a row at all.

    A memory without any row gets zeros, so that softmax stays finite; its attention output is to be multiplied by 0.
    """
    present = (row_count > 0).any(-1)
    log = torch.log(row_count.to(dtype))
    return log.masked_fill(~present.unsqueeze(-1), 0.0), present.to(dtype)


def dropped(x: Tensor, masks: PairMasks | None, site: Site, layer: int) -> Tensor:
    return x if masks is None else x * masks.features(site, layer, x.shape[-1])


def spread_rows(maps: Tensor, row_count: Tensor | None, columns: int) -> Tensor:
    """``[L, M, Q, P]`` at collapsed rows -> ``[L, M, Q, columns]``: a row's weight, evenly over its original rows."""
    if row_count is None:
        return F.pad(maps, (0, columns - maps.shape[-1]))
    start = torch.arange(maps.shape[-1], device=maps.device)
    column = torch.arange(columns, device=maps.device).unsqueeze(-1)
    # [M, columns, P]: 1/n where the column lies in start .. start + n - 1
    inside = (column >= start) & (column < (start + row_count).unsqueeze(1))
    share = inside.to(maps.dtype) / row_count.clamp(min=1).unsqueeze(1)
    return maps @ share.transpose(-1, -2)
