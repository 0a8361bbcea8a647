"""The op's parts, one at a time: the ceilings (cuBLAS, bandwidth), fused GEMMs, attention, MaxSim, masks, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from carzero.ops.rng import Site, kept

from . import cuda_core, fused_gemm, max_sim
from .suite import Suite
from .timing import take_turns

#: (rows, K, N): o and q projections, both maps of the feed-forward network, all layers' keys and values of 64 images.
GEMMS = ((65536, 768, 768), (65536, 768, 1024), (65536, 1024, 768), (12608, 768, 6144), (4096, 768, 768))
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HEADS, HEAD_WIDTH = 4, 192


def run(suite: Suite) -> None:
    """One row a shape."""
    dtype = torch.float32 if suite.dry else torch.bfloat16
    for rows, k, n in ((256, 32, 48),) if suite.dry else GEMMS:
        suite.row(f"GEMM {rows}x{k}x{n}", lambda rows=rows, k=k, n=n: gemm(suite, rows, k, n, dtype))
    suite.row("copy", lambda: bandwidth(suite))
    fused_gemm.run(suite)
    memories = 2 if suite.dry else 256
    for queries in (8,) if suite.dry else (64, 256, 1024):
        for rows in (9,) if suite.dry else (197, 98, 20, 9):
            for dropout in (0.0, 0.1):
                suite.row(
                    f"attention, M={memories} Q={queries} P={rows}, dropout {dropout}",
                    lambda queries=queries, rows=rows, dropout=dropout: attention(
                        suite, memories, queries, rows, dropout, dtype
                    ),
                )
    cuda_core.run(suite)
    max_sim.run(suite)
    pairs = 128 if suite.dry else 65536
    suite.row(f"between the GEMMs, {pairs} pairs, in plain torch", lambda: between(suite, pairs, dtype))


def gemm(suite: Suite, rows: int, k: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    """F.linear forward, and both GEMMs of its backward."""
    x, w, dy = (torch.randn(s, device=suite.device).to(dtype) for s in ((rows, k), (n, k), (rows, n)))
    times = take_turns(
        {"forward": lambda: F.linear(x, w), "d input": lambda: dy @ w, "d weight": lambda: dy.T @ x},
        suite.device,
        rounds=suite.rounds(),
    )
    return {name: {**t, "flops_per_s": 2 * rows * k * n / t["seconds"]} for name, t in times.items()}


def bandwidth(suite: Suite) -> dict[str, Any]:
    """Bytes read and written in a second by a copy far larger than the cache."""
    x = torch.empty((1 << 16) if suite.dry else (1 << 31), dtype=torch.uint8, device=suite.device)
    y = torch.empty_like(x)
    time = take_turns({"copy": lambda: y.copy_(x)}, suite.device, rounds=suite.rounds())["copy"]
    return {**time, "bytes_per_s": 2 * x.numel() / time["seconds"]}


def attention(
    suite: Suite, memories: int, queries: int, rows: int, dropout: float, dtype: torch.dtype
) -> dict[str, Any]:
    """Each SDPA backend at CARZero's head width, forward and forward+backward, with q shared or not (layer 1)."""
    width = 16 if suite.dry else HEAD_WIDTH
    q = torch.randn(memories, HEADS, queries, width, device=suite.device).to(dtype).requires_grad_()
    shared = torch.randn(1, HEADS, queries, width, device=suite.device).to(dtype).requires_grad_()
    k, v = (
        torch.randn(memories, HEADS, rows, width, device=suite.device).to(dtype).requires_grad_() for _ in range(2)
    )  # fmt: skip
    found: dict[str, Any] = {}
    operations = 4.0 * memories * HEADS * queries * rows * width
    for name, backend in SDPA.items():
        runs: dict[str, Callable[[], object]] = {}
        for kind, query in (("own q", q), ("shared q", shared)):

            def forward(query: Tensor = query, backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(query.expand_as(q), k, v, dropout_p=dropout)

            def both(forward: Callable[[], Tensor] = forward) -> None:
                out = forward()
                out.backward(torch.ones_like(out))

            def inference(forward: Callable[[], Tensor] = forward) -> None:
                with torch.no_grad():
                    forward()

            try:
                both()
            except RuntimeError as error:
                found[f"{name}, {kind}"] = {"not_run": str(error).splitlines()[0][:200]}
                continue
            runs |= {f"{name}, {kind}, forward": inference, f"{name}, {kind}, forward+backward": both}
        for key, time in take_turns(runs, suite.device, rounds=suite.rounds()).items():
            factor = 3.5 if key.endswith("backward") else 1.0
            found[key] = {**time, "flops_per_s": factor * operations / time["seconds"]}
    return found


def between(suite: Suite, pairs: int, dtype: torch.dtype) -> dict[str, Any]:
    """What stands between two GEMMs of a layer, in passes of torch: what fusion can win at most."""
    width = 64 if suite.dry else 768
    x = torch.randn(pairs, width, device=suite.device)
    y = torch.randn(pairs, width, device=suite.device).to(dtype)
    gain, shift = torch.ones(width, device=suite.device), torch.zeros(width, device=suite.device)
    seed, queries = torch.tensor([1], device=suite.device), 64
    memory = torch.arange(pairs // queries, device=suite.device).unsqueeze(1)
    query = torch.arange(queries, device=suite.device).unsqueeze(0)
    mask = kept(seed, Site.AFTER_FFN, 0, 0, 0, memory, query, width, 0.1).flatten(0, 1)
    return take_turns(
        {
            "dropout mask": lambda: kept(seed, Site.AFTER_FFN, 0, 0, 0, memory, query, width, 0.1),
            "dropout and residual": lambda: x + y * mask,
            "LayerNorm": lambda: F.layer_norm(x, (width,), gain, shift).to(dtype),
            "ReLU": lambda: torch.relu(y),
        },
        suite.device,
        rounds=suite.rounds(),
    )
