"""MaxSim by the Triton kernels: no score is written, and nothing but the inputs is kept for the backward.

Normalisation and the mean over tokens are plain torch, in slices; `carzero.kernels.max_sim` has the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.kernels.max_sim import max_sim, max_sim_backward

# Rows of memories and tokens in a tile, and results of all its (memory, token): 100 MB of unit rows at D = 768 in 16
# bits, 134 MB of results. A program of the kernel takes a small part of a tile.
_ROWS, _RESULTS = 65536, 2**25
# Elements that are normalised at a time: their float32 copies are small beside a tile.
_SLICE = 2**23


class Call(NamedTuple):
    """One call's tensors and constants; see `carzero.similarities.max_sim`.

    Args:
        tile: scores that a tile stands for at most, or 0; none of them is written.
    """

    memory: Tensor
    queries: Tensor
    row_count: Tensor | None
    token_count: Tensor | None
    normalise: bool
    mean: bool
    tile: int

    def tiles(self) -> tuple[list[slice], list[slice]]:
        """Slices of memories and of queries."""
        (memories, rows, _), (queries, tokens, _) = self.memory.shape, self.queries.shape
        scores = self.tile or memories * rows * queries * tokens
        q_step = max(1, min(_ROWS // tokens, scores // (rows * tokens)))
        m_step = max(1, min(_ROWS // rows, _RESULTS // (q_step * tokens), scores // (rows * tokens * q_step)))
        return _slices(memories, m_step), _slices(queries, q_step)

    def rows(self, m: slice) -> tuple[Tensor, Tensor | None]:
        """What the kernels are given of memories: rows and their counts."""
        return self._unit(self.memory[m]), None if self.row_count is None else self.row_count[m].contiguous()

    def tokens(self, q: slice) -> Tensor:
        """The same of queries, one token after the other."""
        return self._unit(self.queries[q]).flatten(0, 1)

    def shares(self, q: slice) -> Tensor:
        """float32 ``[q, T]``: what a token's best row is multiplied by."""
        if self.token_count is None:
            tokens = self.queries.shape[1]
            share = 1.0 / tokens if self.mean else 1.0
            return self.queries.new_full((self.queries[q].shape[0], tokens), share, dtype=torch.float32)
        count = self.token_count[q].float()
        return count / count.sum(1, keepdim=True).clamp(min=1) if self.mean else count

    def _unit(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if not self.normalise:
            return x
        out = torch.empty_like(x)
        for part in _parts(x):
            out[part] = F.normalize(x[part].float(), dim=-1)
        return out

    def pulled(self, x: Tensor, d_unit: Tensor) -> Tensor:
        """The gradient of x, in its dtype, from float32 of what `_unit` made of it."""
        if not self.normalise:
            return d_unit.to(x.dtype)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in _parts(x):
            _, pull, *_ = torch.func.vjp(lambda rows: F.normalize(rows, dim=-1), x[part].float())
            out[part] = pull(d_unit[part])[0]
        return out


def forward(call: Call) -> Tensor:
    """float32 ``[M, Q]``."""
    out = call.queries.new_empty(call.memory.shape[0], call.queries.shape[0], dtype=torch.float32)
    memories, queries = call.tiles()
    for m in memories:
        rows, count = call.rows(m)
        for q in queries:
            best, _ = max_sim(rows, call.tokens(q), count)
            shares = call.shares(q)
            out[m, q] = (best.view(-1, *shares.shape) * shares).sum(2)
    return out


def backward(grad: Tensor, call: Call) -> list[Tensor]:
    """Gradients of memory and queries in their dtype, from float32 ``[M, Q]``."""
    d_memory = torch.zeros_like(call.memory, memory_format=torch.contiguous_format)
    # of the unit tokens, from all memories
    d_tokens = call.queries.new_zeros(call.queries.shape, dtype=torch.float32)
    memories, queries = call.tiles()
    for m in memories:
        rows, count = call.rows(m)
        d_rows: Tensor | None = None
        for q in queries:
            tokens = call.tokens(q)
            _, index = max_sim(rows, tokens, count, index=True)
            assert index is not None
            g = (grad[m, q].unsqueeze(2) * call.shares(q)).flatten(1)
            d_v, d_w = max_sim_backward(rows, tokens, g, index)
            d_rows = d_v if d_rows is None else d_rows.add_(d_v)
            d_tokens[q] += d_w.view(d_tokens[q].shape)
        if d_rows is not None:
            d_memory[m] = call.pulled(call.memory[m], d_rows)
    return [d_memory, call.pulled(call.queries, d_tokens)]


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


def _parts(x: Tensor) -> list[slice]:
    """Of the first axis of ``[n, rows, D]``, for normalisation."""
    return _slices(len(x), max(1, _SLICE // max(1, x.shape[1] * x.shape[2])))
