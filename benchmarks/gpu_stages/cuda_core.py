"""The CUDA attention core beside the libraries' attention, forward and backward, at CARZero's heads and widths."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from carzero.ops.backends import available
from carzero.ops.rng import threshold

from .suite import Suite
from .timing import take_turns

LIBRARIES = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA Flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
MEMORIES, HEADS, WIDTH = 256, 4, 192
#: Aims on an H200: times as fast as the best library, forward and backward, by P.
TARGETS = {9: (1.5, 1.5), 20: (1.5, 1.5), 98: (1.0, 1.5), 197: (1.2, 1.2)}


def run(suite: Suite) -> None:
    """A row per (Q, P, dropout); without the kernels one row that says why."""
    able, why = available("cuda", suite.device)
    if not able:
        suite.row("CUDA core", lambda: {"absent": why})
        return
    for queries in (64, 256, 1024, 4096):
        for rows in (9, 20, 98, 197):
            for dropout in (0.0, 0.1):
                suite.row(
                    f"CUDA core, H*M={HEADS * MEMORIES} Q={queries} P={rows} K={WIDTH}, dropout {dropout}",
                    lambda q=queries, p=rows, d=dropout: compare(suite, q, p, d),
                    seconds=15,
                )


def compare(suite: Suite, queries: int, rows: int, dropout: float) -> dict[str, Any]:
    """All contenders in turns: seconds, operations a second, and how many times as fast as the best library ours is."""
    d = HEADS * WIDTH
    q, k, v, grad = (
        torch.randn(MEMORIES, r, d, device=suite.device, dtype=torch.bfloat16)
        for r in (queries, rows, rows, queries)
    )  # fmt: skip
    runs, found = libraries(q, k, v, grad, dropout)
    runs |= ours(q, k, v, grad, dropout)
    times = take_turns(runs, suite.device, rounds=suite.rounds())
    operations = 4.0 * MEMORIES * queries * rows * d
    for name, time in times.items():
        # five products against two
        factor = 2.5 if name.endswith("backward") else 1.0
        found[name] = {**time, "flops_per_s": factor * operations / time["seconds"]}
    for i, direction in enumerate(("forward", "backward")):
        best = min((t["seconds"] for n, t in times.items() if n.endswith(direction) and "CUDA" not in n), default=None)
        if best is not None:
            found[f"times faster, {direction}"] = {
                "value": best / times[f"CUDA core, {direction}"]["seconds"],
                "target": TARGETS[rows][i],
            }
    return found


def ours(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, dropout: float) -> dict[str, Callable[[], object]]:
    """The kernels as `carzero.ops.cuda_core` calls them."""
    ops = torch.ops.carzero_cuda
    m, n, _ = q.shape
    out, d_q = torch.empty_like(q), torch.empty_like(q, dtype=torch.float32)
    lse, delta = (torch.empty(m, HEADS, n, device=q.device) for _ in range(2))
    d_kv = torch.zeros(2, *k.shape, device=q.device)
    drop: tuple = (None, None, None, 0, 0, 0)
    if dropout:
        index = [torch.arange(count, device=q.device) for count in (m, n)]
        drop = (torch.tensor([1], device=q.device), *index, threshold(dropout), 1, 0)
    shape = (HEADS, WIDTH**-0.5, None)

    def forward(wgmma: bool = True) -> None:
        ops.attention_forward(q, k, v, *shape, out, lse, None, *drop, wgmma)

    def backward(wgmma: bool = True) -> None:
        ops.attention_backward(grad, q, k, v, out, lse, *shape, delta, d_q, d_kv[0], d_kv[1], *drop, wgmma)

    forward()
    runs: dict[str, Callable[[], object]] = {"CUDA core, forward": forward, "CUDA core, backward": backward}
    if q.is_cuda and torch.cuda.get_device_capability(q.device) == (9, 0):
        # the kernels of the other devices; where they are the faster ones, plan.h should say so
        runs["CUDA core by mma.sync, forward"] = lambda: forward(False)
        runs["CUDA core by mma.sync, backward"] = lambda: backward(False)
    return runs


def libraries(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, dropout: float
) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """What runs, and why the rest does not."""
    heads = [x.unflatten(-1, (HEADS, WIDTH)).detach().requires_grad_() for x in (q, k, v)]
    transposed = [x.detach().transpose(1, 2).requires_grad_() for x in heads]
    runs: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {}

    def add(name: str, leaves: list[Tensor], attend: Callable[..., Tensor], cotangent: Tensor) -> None:
        def forward() -> None:
            with torch.no_grad():
                attend(*leaves)

        try:
            out = attend(*leaves)
            torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
        except RuntimeError as error:
            found[name] = {"not_run": str(error).splitlines()[0][:200]}
            return
        runs[f"{name}, forward"] = forward
        runs[f"{name}, backward"] = lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)

    cotangent = grad.unflatten(-1, (HEADS, WIDTH))
    for name, backend in LIBRARIES.items():

        def attend(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

        add(name, transposed, attend, cotangent.transpose(1, 2))
    if importlib.util.find_spec("flash_attn") is None:
        found["FlashAttention"] = {"not_run": "flash_attn is not installed"}
    else:
        flash = importlib.import_module("flash_attn").flash_attn_func
        add("FlashAttention", heads, lambda q, k, v: flash(q, k, v, dropout_p=dropout), cotangent)
    return runs, found
