"""Inputs of the CUDA kernels' tests, laid out as the op lays them out."""

from __future__ import annotations

import torch
from torch import Tensor


def inputs(
    m: int, q: int, p: int, heads: int, width: int, dtype: torch.dtype, *, shared: bool = False, draw: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q ``[m or 1, Q, D]``, k and v ``[m, P, D]``: views of one layer of ``[m, P, L, 2, D]``, the rest NaN."""
    generator = torch.Generator().manual_seed(draw)
    d = heads * width
    kv = torch.full((m, p, 3, 2, d), torch.nan, dtype=dtype)
    kv[:, :, 1] = torch.randn(m, p, 2, d, generator=generator).to(dtype)
    # scores of some size, so that weights differ
    queries = (2 * torch.randn(1 if shared else m, q, d, generator=generator)).to(dtype)
    return queries, kv[:, :, 1, 0], kv[:, :, 1, 1]


def counts(m: int, p: int) -> Tensor:
    """A memory that is collapsed at two places, one with absent rows, one without any row, then ordinary ones."""
    count = torch.ones(m, p, dtype=torch.int32)
    if p > 4:
        count[0, p - 2 :] = torch.tensor([23, 0])
        count[0, 2] = 2
        count[0, 3] = 0
    if m > 1:
        count[1, p // 2 :] = 0
    if m > 2:
        count[2] = 0
    return count
