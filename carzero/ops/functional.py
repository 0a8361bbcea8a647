"""The public functions: they check their arguments and call the registered ops."""

from __future__ import annotations

import torch
from torch import Tensor

# `registration` defines torch.ops.carzero
from . import registration, validation  # noqa: F401
from .backends import check_recompute, choose, choose_recompute
from .call import autocast_dtype
from .masks import original_rows as count_original_rows
from .packing import PackedWeights, ProjectedMemory
from .spec import DecoderSpec, DecoderWeights
from .tape import TapeSize


def pair_logits(
    memory: Tensor | ProjectedMemory,
    queries: Tensor,
    weights: DecoderWeights | PackedWeights,
    *,
    row_count: Tensor | None = None,
    pairs: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    direction: int = 0,
    memory_offset: int = 0,
    query_offset: int = 0,
    backend: str = "auto",
    recompute: str = "auto",
    tile_pairs: int | None = None,
    original_rows: int | None = None,
    query_mask: Tensor | None = None,
) -> Tensor:
    """Similarity logits of all pairs of M memories and Q queries through the cross-attention decoder.

    *Equivalent to* (without dropout; LN0 is one LayerNorm used three times)::

        m, t = LN0(memory), LN0(queries).expand(M, Q, D)
        for l in range(L):
            a = softmax(q(LN2(t)) @ k(m).transpose(-1, -2) / K**0.5 + log(row_count))    # per head
            t = t + o(a @ v(m))
            t = t + linear2(relu(linear1(LN3(t))))
        logits = head(LN0(t)).squeeze(-1)

    Args:
        memory: ``[M, P, D]`` float64, float32, bfloat16 or float16; or what `project_memory` made of it, which has no
            gradient.
        queries: ``[Q, D]``, the memory's dtype; ``[Q, T, D]`` where the spec has self-attention. Under autocast both
            are cast to its dtype.
        weights: the decoder's tensors; they may be wider than memory and queries (float32 masters).
        row_count: int32 ``[M, P]``: how many original rows each row stands for. 0: absent, whatever it holds; 1:
            itself; n: n equal rows, columns p .. p+n-1 of the original memory. Default: all 1. Not differentiable.
        pairs: int64 ``[N, 2]`` (memory, query) indices: score only these. Default: all M*Q.
        dropout_p: in [0, 1), at every site of the published model.
        seed: int or int64 tensor of one element; needed with dropout. The same seed gives the same masks, bit for bit,
            on every backend, tile and shard.
        direction: 0 where memories are images, 1 where they are texts; enters the random numbers only.
        memory_offset, query_offset: global index of the first memory and query; enter the random numbers only.
        backend: ``"auto"`` or one of `BACKENDS`.
        recompute: ``"full"`` keeps nothing but the inputs for the backward; ``"layer"`` each layer's output,
            ``[L, M*Q, D]``; ``"none"`` the result of every projection of each pair, so that the backward runs only the
            scores again; ``"auto"`` chooses by free memory.
        tile_pairs: pairs in flight; default by device. Bounds the workspace, changes no mask.
        original_rows: P0, rows of the memory before collapse, at least what `row_count` stands for. Worth giving with
            dropout and `row_count` on a GPU, which otherwise has to be waited for to learn it; it changes no result.
        query_mask: bool ``[Q, T]``, True at the tokens that are there; others may hold anything, are not attended, and
            give 0. Default: all. Only where the spec has self-attention.

    Returns:
        ``[M, Q]`` (``[N]`` with `pairs`); the inputs' dtype, float32 under autocast. Further axes, in this order, where
        the spec has them: T (``readout="all"``) and C (``outputs`` above 1).

    Raises:
        ValueError, TypeError, IndexError: an argument breaks a rule above.
        RuntimeError: the backend that was asked for cannot run this call.

    Source: CARZero (arXiv 2402.17417) section 3.3; published file ``CARZero/models/dqn_wo_self_atten_mlp.py``.
    """
    return _pair(
        "pair_logits", memory, queries, weights, row_count, pairs, dropout_p, seed, direction,
        (memory_offset, query_offset), backend, recompute, tile_pairs, original_rows, query_mask,
    )  # fmt: skip


def pair_simr(
    memory: Tensor | ProjectedMemory,
    queries: Tensor,
    weights: DecoderWeights | PackedWeights,
    *,
    row_count: Tensor | None = None,
    pairs: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    direction: int = 0,
    memory_offset: int = 0,
    query_offset: int = 0,
    backend: str = "auto",
    recompute: str = "auto",
    tile_pairs: int | None = None,
    original_rows: int | None = None,
    query_mask: Tensor | None = None,
) -> Tensor:
    """Similarity representations of all pairs: what `pair_logits` gives to its head, before the head's dropout.

    *Equivalent to* ``LN0(t)`` of `pair_logits`, for a head of one's own.

    Args:
        memory, queries, ...: as in `pair_logits`; the weights' head is not used.

    Returns:
        ``[M, Q, D]`` (``[N, D]`` with `pairs`); the inputs' dtype, float32 under autocast. An axis T before the last
        where the spec has ``readout="all"``.

    Raises:
        As `pair_logits`.

    Source: CARZero (arXiv 2402.17417) section 3.3, "similarity representation".
    """
    return _pair(
        "pair_simr", memory, queries, weights, row_count, pairs, dropout_p, seed, direction,
        (memory_offset, query_offset), backend, recompute, tile_pairs, original_rows, query_mask,
    )  # fmt: skip


def pair_attention(
    memory: Tensor | ProjectedMemory,
    queries: Tensor,
    weights: DecoderWeights | PackedWeights,
    *,
    row_count: Tensor | None = None,
    pairs: Tensor | None = None,
    original_rows: int | None = None,
    backend: str = "auto",
    query_mask: Tensor | None = None,
) -> Tensor:
    """Attention weights of all pairs and layers, averaged over heads, at the rows of the memory before collapse.

    *Equivalent to* ``a.mean(heads)`` of every layer of `pair_logits`; the weight of a row that stands for n rows is
    spread evenly over them. No gradient.

    Args:
        memory, queries, weights, row_count, pairs, backend, query_mask: as in `pair_logits`.
        original_rows: P0, columns of the maps; default: the last row that any row stands for, or P without `row_count`.

    Returns:
        ``[L, M, Q, P0]`` (``[L, N, P0]`` with `pairs`), float32 (float64 for float64); an axis T before the last where
        queries have tokens. A memory's columns sum to 1, or to 0 where it has no row.

    Raises:
        ValueError: `original_rows` is smaller than what `row_count` stands for; and as `pair_logits`.
    """
    function = "pair_attention"
    with torch.no_grad():
        memory, row_count, projected = _unpack_memory(function, memory, row_count)
        tensors, packed = _unpack_weights(weights)
        validation.check_tensors(function, memory, queries, tensors, projected)
        validation.check_row_count(function, row_count, memory)
        validation.check_pairs(function, pairs, memory, queries)
        validation.check_options(function, 0.0, None, 0, (0, 0), backend, "full", None)
        validation.check_original_rows(function, original_rows, row_count, memory)
        validation.check_query_mask(function, query_mask, queries, tensors.spec)
        if original_rows is None:
            original_rows = count_original_rows(row_count, memory.shape[1])
        layers = [t for layer in tensors.layers for t in layer]
        return torch.ops.carzero.pair_attention(
            memory, queries, row_count, pairs, tensors.norm_weight, tensors.norm_bias, layers,
            _blob(packed, queries), tensors.spec.heads, tensors.spec.eps, projected, original_rows, backend, 0,
            query_mask, tensors.spec.body().encode(),
        )  # fmt: skip


def project_memory(
    memory: Tensor, weights: DecoderWeights | PackedWeights, *, row_count: Tensor | None = None
) -> ProjectedMemory:
    """All layers' keys and values of memories, once, for many calls: a bank of texts. No gradient.

    *Equivalent to* ``m = LN0(memory); kv[:, :, l] = stack([m @ Wk[l].T, m @ Wv[l].T + bv[l]])``.

    Args:
        memory: ``[M, P, D]``.
        weights, row_count: as in `pair_logits`; the result keeps `row_count`.

    Returns:
        A `ProjectedMemory` with ``kv [M, P, L, 2, D]`` in the memory's dtype, or autocast's.
    """
    function = "project_memory"
    tensors, _ = _unpack_weights(weights)
    validation.check_memory(function, memory, tensors.spec, projected=False)
    validation.check_devices(function, memory, {"weights": tensors.norm_weight})
    validation.check_row_count(function, row_count, memory)
    layers = [t for layer in tensors.layers for t in layer]
    with torch.no_grad():
        kv = torch.ops.carzero.project_memory(
            memory,
            row_count,
            tensors.norm_weight,
            tensors.norm_bias,
            layers,
            tensors.spec.eps,
            tensors.spec.body().encode(),
        )
    return ProjectedMemory(kv, row_count)


def pack_weights(weights: DecoderWeights, dtype: torch.dtype | None = None) -> PackedWeights:
    """Weights laid out once for the backend that will run them, for many calls without a gradient of theirs.

    Args:
        weights: the tensors; the result holds them too.
        dtype: compute dtype of the calls to come (autocast's, where they run under it); default: the weights' own.

    Returns:
        A `PackedWeights`, to be passed in place of the weights. It does not follow later writes to them.
    """
    dtype = weights.norm_weight.dtype if dtype is None else dtype
    device, spec = weights.norm_weight.device, weights.spec
    name, _ = choose("auto", device=device, dtype=dtype, width=spec.width, heads=spec.heads, other=spec.other())
    blob = None
    if name == "cpp":
        with torch.no_grad():
            blob = torch.ops.carzero.pack_weights(weights.flat(), spec.heads, dtype)
    return PackedWeights(weights, dtype, blob)


def _pair(
    function: str, memory, queries, weights, row_count, pairs, dropout_p, seed, direction, offsets, backend, recompute,
    tile_pairs, original_rows, query_mask,
) -> Tensor:  # fmt: skip
    memory, row_count, projected = _unpack_memory(function, memory, row_count)
    tensors, packed = _unpack_weights(weights)
    validation.check_tensors(function, memory, queries, tensors, projected)
    validation.check_row_count(function, row_count, memory)
    validation.check_pairs(function, pairs, memory, queries)
    validation.check_options(function, dropout_p, seed, direction, offsets, backend, recompute, tile_pairs)
    validation.check_original_rows(function, original_rows, row_count, memory)
    validation.check_query_mask(function, query_mask, queries, tensors.spec)
    flat = tensors.flat()
    weights_train = torch.is_grad_enabled() and any(t.requires_grad for t in flat)
    if projected and weights_train:
        raise ValueError(
            f"{function}: a projected memory is a constant, so the weights' gradients through keys and values would be "
            "missing. Pass the memory itself to train, or call under torch.no_grad()."
        )
    if dropout_p == 0.0:
        seed = None
    elif not isinstance(seed, Tensor):
        seed = torch.tensor([seed], dtype=torch.int64, device=queries.device)
    trains = weights_train or (torch.is_grad_enabled() and (memory.requires_grad or queries.requires_grad))
    spec = tensors.spec if function == "pair_logits" else tensors.spec.body()
    recompute = _recompute(trains, recompute, backend, memory, queries, spec, pairs, projected, dropout_p > 0.0)
    layers = [t for layer in tensors.layers for t in layer]
    head = list(tensors.head) if function == "pair_logits" else []
    op = getattr(torch.ops.carzero, function)
    return op(
        memory, queries, row_count, pairs, tensors.norm_weight, tensors.norm_bias, layers, head,
        _blob(packed, queries), tensors.spec.heads, tensors.spec.eps, dropout_p, seed, direction, *offsets, projected,
        False, backend, recompute, tile_pairs or 0, original_rows or 0, query_mask, spec.encode(),
    )[0]  # fmt: skip


def _recompute(
    trains: bool, recompute: str, backend: str, memory: Tensor, queries: Tensor, spec: DecoderSpec,
    pairs: Tensor | None, projected: bool, dropout: bool,
) -> str:  # fmt: skip
    """The mode that the op is given: a tape only where there is a backward to read it."""
    check_recompute(recompute, spec.other())
    if not trains or spec.other():
        return "full"
    if torch.compiler.is_compiling():
        # the choice by free memory would be frozen into the graph
        return "full" if recompute == "auto" else recompute
    dtype = autocast_dtype(queries.dtype, queries.device)
    chosen, _ = choose(
        backend, device=queries.device, dtype=dtype, width=spec.width, heads=spec.heads,
        recompute=recompute, projected_backward=projected, rows=memory.shape[1],
    )  # fmt: skip
    size = TapeSize(
        layers=spec.layers,
        pairs=memory.shape[0] * queries.shape[0] if pairs is None else pairs.shape[0],
        width=spec.width,
        ffn=spec.ffn,
        dtype=dtype,
        device=queries.device,
        dropout=dropout,
        lse_heads=spec.heads if chosen == "triton" else 0,
    )
    return choose_recompute(recompute, backend=chosen, device=queries.device, tape_bytes=size.bytes)[0]


def _unpack_memory(
    function: str, memory: Tensor | ProjectedMemory, row_count: Tensor | None
) -> tuple[Tensor, Tensor | None, bool]:
    if not isinstance(memory, ProjectedMemory):
        return memory, row_count, False
    if row_count is not None:
        raise ValueError(f"{function}: a projected memory has its own row_count; give it to project_memory instead.")
    return memory.kv, memory.row_count, True


def _unpack_weights(weights: DecoderWeights | PackedWeights) -> tuple[DecoderWeights, PackedWeights | None]:
    return (weights.weights, weights) if isinstance(weights, PackedWeights) else (weights, None)


def _blob(packed: PackedWeights | None, queries: Tensor) -> Tensor | None:
    """The packed layout where it was made for this call's dtype."""
    if packed is None or packed.dtype != autocast_dtype(queries.dtype, queries.device):
        return None
    return packed.blob
