"""The op as its equation reads: every pair materialised, differentiated by torch. The oracle, never a speed baseline.

Shapes: m [M, P, D] memory; t [M, Q, T, D], T = 1 but for queries of several tokens; for a list of pairs [N, 1, T, D],
in which case the memory is gathered to one per pair. Until the first attention to the memory t does not depend on it,
and its first axis is 1. Computes in float64 for float64 inputs and in float32 otherwise; weights that are narrower
multiply in their own dtype, which `tiled_general` makes use of.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Layer, Options, Params, wide_dtype
from .masks import PairMasks, original_rows
from .rng import Site


def pair_logits(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Tensor:
    """``[M, Q]`` (``[N]``) logits, differentiable any number of times; axes T and C follow where the spec has them."""
    simr, masks = _simr(memory, queries, params, options)
    logits = head(simr, params, masks, _mask_of(options))
    return logits if options.pairs is None else logits.squeeze(1)


def pair_simr(memory: Tensor, queries: Tensor, params: Params, options: Options) -> Tensor:
    """``[M, Q, D]`` (``[N, D]``) similarity representations; an axis T before D where all tokens are read."""
    simr, _ = _simr(memory, queries, params, options)
    simr = read_out(simr, params, _mask_of(options))
    return simr if options.pairs is None else simr.squeeze(1)


def pair_attention(memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int) -> Tensor:
    """``[L, M, Q, columns]`` (``[L, N, columns]``) attention weights, averaged over heads, at the original rows.

    An axis T comes before the last where queries have tokens.
    """
    return head_attention(memory, queries, params, options, columns).mean(1)


def head_attention(memory: Tensor, queries: Tensor, params: Params, options: Options, columns: int) -> Tensor:
    """``[L, H, M, Q, columns]`` (``[L, H, N, columns]``) attention weights of every head, at the original rows.

    An axis T comes before the last where queries have tokens.
    """
    maps: list[Tensor] = []
    _simr(memory, queries, params, options, maps)
    stacked = torch.stack(maps).transpose(1, 2)
    row_count = options.row_count
    if row_count is not None and options.pairs is not None:
        row_count = row_count[options.pairs[:, 0]]
    spread = spread_rows(stacked.flatten(3, 4), row_count, columns).unflatten(3, stacked.shape[3:5])
    spread = spread if params.structure.self_attention else spread.squeeze(4)
    return spread if options.pairs is None else spread.squeeze(3)


HEAD_SITES = (Site.HEAD_HIDDEN_1, Site.HEAD_HIDDEN_2, Site.HEAD_HIDDEN_3)


def _simr(
    memory: Tensor, queries: Tensor, params: Params, options: Options, maps: list[Tensor] | None = None
) -> tuple[Tensor, PairMasks | None]:
    """Final representations ``[M, Q, T, D]`` of all tokens."""
    wide = wide_dtype(queries.dtype)
    params = params.map(lambda p: p.to(wide))
    count, mask = options.row_count, options.query_mask
    columns = options.original_rows or original_rows(count, memory.shape[1])
    kv = memory.to(wide) if options.projected else project(memory_rows(memory, count, params), params)
    t = start(queries, mask, params)

    if options.pairs is None:
        index_m = torch.arange(memory.shape[0], device=memory.device).unsqueeze(1)
        index_q = torch.arange(queries.shape[0], device=memory.device).unsqueeze(0)
        t, mask = t.unsqueeze(0), None if mask is None else mask.unsqueeze(0)
    else:
        index_m, index_q = options.pairs[:, :1], options.pairs[:, 1:]
        kv, t = kv[index_m.squeeze(1)], t[index_q]
        count = None if count is None else count[index_m.squeeze(1)]
        mask = None if mask is None else mask[index_q]
    masks = PairMasks.of(options, index_m, index_q, columns, wide)
    masks = None if masks is None else masks.for_tokens(t.shape[2], params)
    return decode(t, kv, params, count, mask, masks, maps), masks


def memory_rows(memory: Tensor, count: Tensor | None, params: Params) -> Tensor:
    """Memory rows in the wide dtype as keys and values are made of them."""
    m = memory.to(wide_dtype(memory.dtype))
    if count is not None:
        # an absent row may hold anything
        m = m.masked_fill((count == 0).unsqueeze(-1), 0.0)
    return shared_norm(m, params, "memory")


def start(queries: Tensor, mask: Tensor | None, params: Params) -> Tensor:
    """Queries ``[Q, T, D]`` as they enter the first layer; masked tokens may hold anything and are zeros."""
    t = queries.to(wide_dtype(queries.dtype))
    t = t if params.structure.self_attention else t.unsqueeze(-2)
    t = t if mask is None else t.masked_fill(~mask.unsqueeze(-1), 0.0)
    return shared_norm(t, params, "queries")


def decode(
    t: Tensor, kv: Tensor, params: Params, count: Tensor | None, mask: Tensor | None, masks: PairMasks | None,
    maps: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """All layers and the last norm: ``[M, Q, T, D]``, without maps T = 1 where only the first token is read.

    Args:
        t: ``[1 or M, Q, T, D]`` from `start`.
        kv: ``[M, P, L, 2, D]`` keys and values.
        count: int32 ``[M, P]`` row counts, or None.
        mask: bool ``[1 or M, Q, T]`` tokens that are there, or None.
        maps: receives each layer's ``[M, H, Q, T, P]`` softmax weights.
    """
    heads, structure = params.heads, params.structure
    for l, layer in enumerate(params.layers):
        k, v = (split_heads(kv[:, :, l, i], heads) for i in (0, 1))
        if structure.self_attention:
            t = _sublayer(t, "norm1", layer, params, lambda x: _self_attention(x, layer, l, heads, mask, masks))  # noqa: B023
        if l == len(params.layers) - 1 and structure.readout == "first" and maps is None:
            # nothing but the first token is read from here on
            t, masks = t[:, :, :1], None if masks is None else masks.for_tokens(1, params)
        t = _sublayer(t, "norm2", layer, params, lambda x: _attention(x, k, v, layer, l, count, masks, maps))  # noqa: B023
        t = _sublayer(t, "norm3", layer, params, lambda x: _feed_forward(x, layer, l, params, masks))  # noqa: B023
    t = t.expand(kv.shape[0], -1, -1, -1)
    return shared_norm(t, params, "output")


def read_out(simr: Tensor, params: Params, mask: Tensor | None) -> Tensor:
    """``[M, Q, D]``, or ``[M, Q, T, D]`` where all tokens are read; zeros for tokens that are not there."""
    if mask is not None:
        simr = simr.masked_fill(~mask[..., : simr.shape[2]].unsqueeze(-1), 0.0)
    return simr if params.structure.readout == "all" else simr[:, :, 0]


def head(simr: Tensor, params: Params, masks: PairMasks | None, mask: Tensor | None) -> Tensor:
    """Logits ``[M, Q]`` of representations ``[M, Q, T, D]``; see `pair_logits`."""
    masks = None if masks is None else masks.for_tokens(simr.shape[2], params)
    x = dropped(simr, masks, Site.BEFORE_HEAD, 0)
    last = len(params.head) - 2
    for index in range(0, len(params.head), 2):
        x = linear(x, *params.head[index : index + 2])
        if index < last:
            x = dropped(torch.relu(x), masks, HEAD_SITES[index // 2], 0)
    logits = read_out(x, params, mask)
    return logits if params.structure.outputs > 1 else logits.squeeze(-1)


def _sublayer(t: Tensor, name: str, layer: Layer, params: Params, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A sublayer with its residual and its norm, before or after."""
    norm = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias"), params.eps
    if params.structure.norm_first:
        return t + function(layer_norm(t, *norm))
    return layer_norm(t + function(t), *norm)


def _attention(
    x: Tensor, k: Tensor, v: Tensor, layer: Layer, l: int, row_count: Tensor | None, masks: PairMasks | None,
    maps: list[Tensor] | None,
) -> Tensor:  # fmt: skip
    """What attention to the memory adds ``[M, Q, T, D]``."""
    d, grid = x.shape[-1], x.shape[1:3]
    q = split_heads(linear(x.flatten(1, 2), layer.in_proj_weight[:d], layer.in_proj_bias[:d]), k.shape[1])
    scores = (q.to(k.dtype) @ k.transpose(-1, -2)).to(x.dtype) * q.shape[-1] ** -0.5
    if row_count is not None:
        bias, present = row_bias(row_count, scores.dtype)
        weights = torch.softmax(scores + bias[:, None, None], -1) * present[:, None, None, None]
    else:
        weights = torch.softmax(scores, -1)
    if maps is not None:
        maps.append(weights.unflatten(2, grid))
    if masks is not None and Site.ATTENTION in masks.active:
        weights = weights * masks.attention(l, k.shape[1], k.shape[2], row_count).flatten(2, 3)
    o = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2).unflatten(1, grid).to(x.dtype)
    return dropped(linear(o, layer.out_proj_weight, layer.out_proj_bias), masks, Site.AFTER_OUT_PROJECTION, l)


def _self_attention(
    x: Tensor, layer: Layer, l: int, heads: int, mask: Tensor | None, masks: PairMasks | None
) -> Tensor:  # fmt: skip
    """What attention among a query's tokens adds ``[1 or M, Q, T, D]``."""
    projected = linear(x, layer.self_in_proj_weight, layer.self_in_proj_bias)
    # [M, Q, T, 3, H, K] -> three of [M, H, Q, T, K]
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5).to(layer.self_in_proj_weight.dtype)
    scores = (q @ k.transpose(-1, -2)).to(x.dtype) * q.shape[-1] ** -0.5
    if mask is not None:
        bias, present = row_bias(mask.to(torch.int32), scores.dtype)
        weights = torch.softmax(scores + bias[:, None, :, None], -1) * present[:, None, :, None, None]
    else:
        weights = torch.softmax(scores, -1)
    if masks is not None and Site.SELF_ATTENTION in masks.active:
        weights = weights * masks.self_attention(l, heads)
    o = (weights.to(v.dtype) @ v).permute(0, 2, 3, 1, 4).flatten(-2).to(x.dtype)
    o = linear(o, layer.self_out_proj_weight, layer.self_out_proj_bias)
    return dropped(o, masks, Site.AFTER_SELF_OUT_PROJECTION, l)


def _feed_forward(x: Tensor, layer: Layer, l: int, params: Params, masks: PairMasks | None) -> Tensor:
    """What the feed-forward network adds ``[M, Q, T, D]``."""
    activation = F.gelu if params.structure.activation == "gelu" else torch.relu
    h = activation(linear(x, layer.linear1_weight, layer.linear1_bias))
    h = dropped(h, masks, Site.FFN_HIDDEN, l)
    return dropped(linear(h, layer.linear2_weight, layer.linear2_bias), masks, Site.AFTER_FFN, l)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` in the weight's dtype, result in x's."""
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def shared_norm(x: Tensor, params: Params, place: str) -> Tensor:
    """LN0, where the spec applies it."""
    if place not in params.structure.norm_on:
        return x
    return layer_norm(x, params.norm_weight, params.norm_bias, params.eps)


def project(m: Tensor, params: Params) -> Tensor:
    """All layers' keys and values ``[M, P, L, 2, D]`` of normalised memory rows; no key bias (softmax cancels it)."""
    kv = []
    for layer in params.layers:
        d = layer.norm2_weight.shape[0]
        stacked = layer.in_proj_weight[d:] if layer.memory_proj_weight is None else layer.memory_proj_weight
        key, value = linear(m, stacked[:d]), linear(m, stacked[d:], layer.in_proj_bias[2 * d :])
        kv.append(torch.stack((key, value), 2))
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
    if masks is None or site not in masks.active:
        return x
    return x * masks.features(site, layer, x.shape[-1])


def spread_rows(maps: Tensor, row_count: Tensor | None, columns: int) -> Tensor:
    """``[..., M, Q, P]`` at collapsed rows -> ``[..., M, Q, columns]``: a row's weight, even over its original rows."""
    if row_count is None:
        return F.pad(maps, (0, columns - maps.shape[-1]))
    start = torch.arange(maps.shape[-1], device=maps.device)
    column = torch.arange(columns, device=maps.device).unsqueeze(-1)
    # [M, columns, P]: 1/n where the column lies in start .. start + n - 1
    inside = (column >= start) & (column < (start + row_count).unsqueeze(1))
    share = inside.to(maps.dtype) / row_count.clamp(min=1).unsqueeze(1)
    return maps @ share.transpose(-1, -2)


def _mask_of(options: Options) -> Tensor | None:
    """Tokens that are there ``[1, Q, T]`` (``[N, 1, T]``), or None."""
    mask = options.query_mask
    if mask is None:
        return None
    return mask.unsqueeze(0) if options.pairs is None else mask[options.pairs[:, 1]].unsqueeze(1)
