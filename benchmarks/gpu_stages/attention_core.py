"""The Triton attention core at CARZero's head width, beside the SDPA rows of `kernels.attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from carzero.ops.rng import keep_scale, threshold

from .suite import Suite
from .timing import take_turns

HEADS, HEAD_WIDTH = 4, 192


def measure(suite: Suite, memories: int, queries: int, rows: int, p: float, dtype: torch.dtype) -> dict[str, Any]:
    """Forward, and backward alone, with q shared by all memories or not; rate of the operations without recompute.

    k and v are views of one buffer of all layers, as the op has them. A collapsed text is timed with row counts: its
    last row stands for the 80 rows of padding.

    Returns:
        ``{"triton, own q, forward": {"seconds": ..., "flops_per_s": ...}, ...}``, or why nothing ran.
    """
    from carzero.kernels.attention import attention_forward
    from carzero.kernels.attention_backward import attention_backward
    from carzero.kernels.philox import Dropout

    device, width = suite.device, 16 if suite.dry else HEAD_WIDTH
    d = HEADS * width
    kv = torch.randn(memories, rows, 4, 2, d, device=device).to(dtype)
    k, v = kv[:, :, 1, 0], kv[:, :, 1, 1]
    d_kv = torch.zeros(kv.shape, device=device)
    count, columns = None, rows
    if rows <= 32:
        count = torch.ones(memories, rows, dtype=torch.int32, device=device)
        count[:, -1], columns = 80, rows + 79
    dropout = None
    if p:
        index = torch.arange(memories, device=device), torch.arange(queries, device=device)[None]
        seed = torch.tensor([1], device=device)
        dropout = Dropout(seed, threshold(p), keep_scale(p), 1, 0, *index, columns=columns)
    do = torch.randn(memories, queries, d, device=device).to(dtype)
    lse = torch.empty(memories, HEADS, queries, device=device)
    out, d_q = torch.empty_like(do), torch.empty_like(do)
    how: dict[str, Any] = {"heads": HEADS, "scale": width**-0.5, "count": count, "dropout": dropout}
    runs: dict[str, Callable[[], object]] = {}
    for kind, m in (("own q", memories), ("shared q", 1)):
        q = torch.randn(m, queries, d, device=device).to(dtype)

        def forward(q: torch.Tensor = q) -> None:
            attention_forward(q, k, v, **how, out=out, lse=lse)

        def backward(q: torch.Tensor = q) -> None:
            attention_backward(do, q, k, v, out, lse, **how, d_q=d_q, d_k=d_kv[:, :, 1, 0], d_v=d_kv[:, :, 1, 1])

        forward()
        runs |= {f"triton, {kind}, forward": forward, f"triton, {kind}, backward": backward}
    operations = 4.0 * memories * HEADS * queries * rows * width
    times = take_turns(runs, device, rounds=suite.rounds())
    return {
        name: {**time, "flops_per_s": (2.5 if name.endswith("backward") else 1.0) * operations / time["seconds"]}
        for name, time in times.items()
    }
