"""Inputs, tolerances and masks of the kernels' tests; the truth is float64 torch."""

from __future__ import annotations

import torch
from torch import Tensor

from carzero.kernels.philox import Dropout
from carzero.kernels.table import Choice
from carzero.ops.rng import Site, keep_scale, kept, threshold

#: Largest error relative to the largest element, by dtype: sums of 30 to 200 products, one rounding of the result.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}

#: Every kernel's dtypes here; bfloat16 is wrong in the interpreter, and is tested where the kernels are compiled.
DTYPES = (torch.float32, torch.float16)

EPS = 1e-5

#: Who multiplies in a test: Triton, Triton with the epilogue in halves that draw once, or cuBLAS (on a CPU: torch).
CHOICES = {
    "triton": Choice("triton", (64, 64, 64), 4, 1, False, False, False, "tests"),
    "halves": Choice("triton", (64, 64, 64), 4, 1, True, False, True, "tests"),
    "cublas": Choice("cublas", (64, 64, 64), 4, 1, False, False, False, "tests"),
}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Normal numbers."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(device)


def dropouts(memories: int, queries: int, device: torch.device, *, shared: bool = True, p: float = 0.2) -> Dropout:
    """Masks of a block of pairs; with queries of their own for each memory where not `shared`."""
    memory = torch.arange(memories, device=device) + 70001
    query = (torch.arange(queries) * 3 + 2**31).expand(1 if shared else memories, -1).contiguous().to(device)
    if not shared:
        query += torch.arange(memories, device=device).unsqueeze(1) * 1000
    seed = torch.tensor([2**41 + 11], device=device)
    return Dropout(seed, threshold(p), keep_scale(p), 3, 1, memory, query, 0)


def mask(dropout: Dropout, site: Site, width: int) -> Tensor:
    """The reference's multipliers ``[R, width]``, float64."""
    stay = kept(
        dropout.seed, site, dropout.layer, dropout.direction, 0, dropout.memory_index.unsqueeze(1),
        dropout.query_index, width, dropout.threshold / 65536,
    )  # fmt: skip
    return stay.flatten(0, 1).double() * dropout.scale


def worst(ours: Tensor, truth: Tensor) -> float:
    """Largest error relative to the largest element of the truth; NaN stays NaN."""
    return float((ours.double() - truth).abs().max() / truth.abs().max())
