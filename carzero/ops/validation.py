"""Checks made once, at the public door: each error says the function, the rule, both values and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import BACKENDS, RECOMPUTE, check_name
from .call import autocast_dtype
from .masks import original_rows as count_original_rows
from .spec import DecoderSpec, DecoderWeights

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# a random counter's words for memory and query have 32 bits
_OFFSET_LIMIT = 2**32


def check_tensors(function: str, memory: Tensor, queries: Tensor, weights: DecoderWeights, projected: bool) -> None:
    """Shapes, dtypes and devices of memory, queries and weights."""
    spec = weights.spec
    check_memory(function, memory, spec, projected)
    axes = "[Q, T, D], as the weights' spec has self_attention=True" if spec.self_attention else "[Q, D]"
    if queries.dim() != (3 if spec.self_attention else 2):
        raise ValueError(f"{function}: queries must be {axes}, got queries.shape={tuple(queries.shape)}.")
    if spec.self_attention and queries.shape[1] < 1:
        raise ValueError(
            f"{function}: a query must have at least one token, got queries.shape={tuple(queries.shape)}. A query of "
            "no token is one with query_mask False."
        )
    if queries.shape[-1] != spec.width:
        if spec.memory_width is None:
            raise ValueError(
                f"{function}: memory and queries must have the same width D, got memory.shape={tuple(memory.shape)} "
                f"and queries.shape={tuple(queries.shape)}."
            )
        raise ValueError(
            f"{function}: queries and weights must have the same width D, got queries.shape={tuple(queries.shape)} and "
            f"weights of width {spec.width}."
        )
    check_devices(function, memory, {"queries": queries, "weights": weights.norm_weight})
    if autocast_dtype(memory.dtype, memory.device) != autocast_dtype(queries.dtype, queries.device):
        raise TypeError(
            f"{function}: memory and queries must have the same dtype, got {memory.dtype} and {queries.dtype}. "
            "Cast one of them, or call under torch.autocast."
        )
    check_dtype(function, "queries", queries)


def check_memory(function: str, memory: Tensor, spec: DecoderSpec, projected: bool) -> None:
    """Shape and dtype of a memory ``[M, P, D]`` or of its keys and values ``[M, P, L, 2, D]``."""
    check_dtype(function, "memory", memory)
    if projected:
        want = (spec.layers, 2, spec.width)
        if memory.dim() != 5 or tuple(memory.shape[2:]) != want:
            raise ValueError(
                f"{function}: a projected memory must be [M, P, L, 2, D] with (L, 2, D) = {want} of the weights, got "
                f"{tuple(memory.shape)}. Project it again with these weights."
            )
    elif memory.dim() != 3:
        raise ValueError(f"{function}: memory must be [M, P, D], got memory.shape={tuple(memory.shape)}.")
    if memory.shape[1] < 1:
        raise ValueError(
            f"{function}: a memory must have at least one row, got memory.shape={tuple(memory.shape)}. A memory that "
            "attends to nothing is one row with row_count 0."
        )
    width = spec.width if projected else spec.memory_dim
    if memory.shape[-1] != width:
        raise ValueError(
            f"{function}: memory and weights must have the same width D, got memory.shape={tuple(memory.shape)} and "
            f"weights of width {width}."
        )


def check_dtype(function: str, name: str, tensor: Tensor) -> None:
    """One of the supported floating dtypes."""
    if tensor.dtype not in _DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise TypeError(f"{function}: {name} must be one of {known}, got {tensor.dtype}.")


def check_devices(function: str, memory: Tensor, others: dict[str, Tensor | None]) -> None:
    """All on the memory's device."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != memory.device:
            raise ValueError(
                f"{function}: {name} must be on the memory's device, got {tensor.device} and {memory.device}. "
                "Move one of them."
            )


def check_row_count(function: str, row_count: Tensor | None, memory: Tensor) -> None:
    """int32 ``[M, P]``, none negative."""
    if row_count is None:
        return
    check_devices(function, memory, {"row_count": row_count})
    want = tuple(memory.shape[:2])
    if row_count.dtype != torch.int32 or tuple(row_count.shape) != want:
        raise ValueError(
            f"{function}: row_count must be int32 of shape [M, P] = {want}, got {row_count.dtype} of shape "
            f"{tuple(row_count.shape)}."
        )
    # reading a GPU's values back would stall its queue
    if row_count.device.type == "cpu" and row_count.numel() and not torch.compiler.is_compiling():
        lowest = int(row_count.min())
        if lowest < 0:
            raise ValueError(
                f"{function}: row_count must be 0 (absent), 1, or the number of equal rows that a row stands for; got "
                f"{lowest}."
            )


def check_original_rows(function: str, original_rows: int | None, row_count: Tensor | None, memory: Tensor) -> None:
    """At least the rows that memory and row_count stand for; on a GPU their counts are not read back."""
    if original_rows is None or torch.compiler.is_compiling():
        return
    least = memory.shape[1] if row_count is None else 1
    if row_count is not None and row_count.device.type == "cpu":
        least = count_original_rows(row_count, memory.shape[1])
    if original_rows < least:
        raise ValueError(
            f"{function}: original_rows must be at least {least}, the rows that memory and row_count stand for, got "
            f"{original_rows}."
        )


def check_query_mask(function: str, mask: Tensor | None, queries: Tensor, spec: DecoderSpec) -> None:
    """bool ``[Q, T]``, for queries that have tokens."""
    if mask is None:
        return
    if not spec.self_attention:
        raise ValueError(
            f"{function}: query_mask is of a query's tokens, which only weights of a spec with self_attention=True "
            "have. Leave it out."
        )
    check_devices(function, queries, {"query_mask": mask})
    want = tuple(queries.shape[:2])
    if mask.dtype != torch.bool or tuple(mask.shape) != want:
        raise ValueError(
            f"{function}: query_mask must be bool of shape [Q, T] = {want}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}."
        )


def check_pairs(function: str, pairs: Tensor | None, memory: Tensor, queries: Tensor) -> None:
    """int64 ``[N, 2]`` of memory and query indices in range."""
    if pairs is None:
        return
    check_devices(function, memory, {"pairs": pairs})
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"{function}: pairs must be int64 of shape [N, 2] (memory, query), got {pairs.dtype} of shape "
            f"{tuple(pairs.shape)}."
        )
    if not pairs.shape[0] or torch.compiler.is_compiling():
        return
    for column, (name, size) in enumerate((("memory", memory.shape[0]), ("query", queries.shape[0]))):
        low, high = (int(v) for v in pairs[:, column].aminmax())
        if low < 0 or high >= size:
            raise IndexError(
                f"{function}: pairs holds {name} indices from {low} to {high}, but there are {size}: they must lie in "
                f"0 .. {size - 1}. Global indices go into memory_offset and query_offset."
            )


def check_options(
    function: str, dropout_p: float, seed: int | Tensor | None, direction: int, offsets: tuple[int, int],
    backend: str, recompute: str, tile_pairs: int | None,
) -> None:  # fmt: skip
    """Dropout and its seed, direction, offsets, names, tile size."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{function}: dropout_p must lie in [0, 1), got {dropout_p}.")
    if dropout_p > 0.0 and seed is None:
        raise ValueError(
            f"{function}: dropout_p={dropout_p} needs a seed. Pass an int, or an int64 tensor of one element drawn "
            "anew for every step."
        )
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                f"{function}: seed must be an int or an int64 tensor of one element, got {seed.dtype} of shape "
                f"{tuple(seed.shape)}."
            )
    elif isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        raise ValueError(f"{function}: seed must fit in 64 bits, got {seed}.")
    if direction not in (0, 1):
        raise ValueError(
            f"{function}: direction must be 0 (memories are images) or 1 (memories are texts), got {direction!r}."
        )
    for name, offset in zip(("memory_offset", "query_offset"), offsets):
        if not 0 <= offset < _OFFSET_LIMIT:
            raise ValueError(f"{function}: {name} must lie in 0 .. 2**32 - 1, got {offset}.")
    check_name(function, "backend", backend, ("auto", *BACKENDS))
    check_name(function, "recompute", recompute, RECOMPUTE)
    if tile_pairs is not None and tile_pairs < 1:
        raise ValueError(f"{function}: tile_pairs must be a positive number of pairs or None, got {tile_pairs}.")
