"""MaxSim by the Triton kernels, by tiles of torch, and as one would write it: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.ops.backends import available
from carzero.similarities import max_sim

from .suite import Suite
from .timing import peak_bytes, take_turns

#: (M, P, Q, T, D): FILIP's two directions.
SHAPES = ((256, 197, 256, 24, 768), (256, 24, 256, 197, 768))
#: Largest relative L2 errors of the result and of the gradients against the float64 equation. Rounding gives some
#: tokens another best row and so another gradient: torch in bfloat16 is off by 0.11 at these sizes, a wrong kernel by
#: about 1.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 0.25)}


def run(suite: Suite) -> None:
    """A row per direction; without the kernels one row that says why."""
    able, why = available("triton", suite.device)
    if not able:
        suite.row("MaxSim", lambda: {"absent": why})
        return
    # the interpreter multiplies the bit patterns of bfloat16
    dtype = torch.float32 if suite.dry else torch.bfloat16
    for shape in ((3, 9, 2, 5, 16),) if suite.dry else SHAPES:
        m, p, q, t, _ = shape
        suite.row(
            f"MaxSim, M={m} P={p} Q={q} T={t}, {str(dtype).removeprefix('torch.')}",
            lambda shape=shape: compare(suite, shape, dtype),
            seconds=30,
        )


def compare(suite: Suite, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """All contenders in turns, once the kernels agree with the float64 equation; times faster than tiles of torch."""
    errors = check(suite, shape, dtype)
    v, w = leaves(suite, shape, dtype)
    contenders: dict[str, Callable[[], Tensor]] = {
        "triton": lambda: max_sim(v, w, backend="triton"),
        "torch": lambda: max_sim(v, w, backend="torch"),
        "plain": lambda: plain(v, w),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, call in contenders.items():

        def forward(call: Callable[[], Tensor] = call) -> None:
            with torch.no_grad():
                call()

        def both(call: Callable[[], Tensor] = call) -> None:
            torch.autograd.grad(call().float().sum(), (v, w))

        runs |= {f"{name}, forward": forward, f"{name}, forward+backward": both}
    times = take_turns(runs, suite.device, rounds=suite.rounds())
    m, p, q, t, d = shape
    found = {}
    for name, time in times.items():
        direction = name.split(", ")[1]
        # scores; with the gradients of both sides, three products of that size
        operations = 2.0 * m * p * q * t * d * (1 if direction == "forward" else 3)
        found[name] = {
            **time,
            "flops_per_s": operations / time["seconds"],
            "times_faster": times[f"torch, {direction}"]["seconds"] / time["seconds"],
            "peak_bytes": peak_bytes(runs[name], suite.device),
        }
    return {"shape": f"M={m} P={p} Q={q} T={t} D={d}", "relative_errors": errors, "contenders": found}


def check(suite: Suite, shape: tuple[int, ...], dtype: torch.dtype) -> list[float]:
    """Relative L2 errors of result and gradients at 8 memories and queries of this shape; refuses one too large."""
    m, p, q, t, d = shape
    small = leaves(suite, (min(m, 8), p, min(q, 8), t, d), dtype)
    exact = [x.detach().double().requires_grad_() for x in small]
    out, truth = max_sim(*small, backend="triton"), max_sim(*exact, backend="reference")
    cotangent = torch.randn_like(truth)
    pairs = [(out, truth)]
    pairs += zip(torch.autograd.grad(out, small, cotangent.to(dtype)), torch.autograd.grad(truth, exact, cotangent))
    errors = [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in pairs]
    for_result, for_gradients = TOLERANCE[dtype]
    # a NaN compares false
    if not (errors[0] <= for_result and max(errors[1:]) <= for_gradients):
        raise ArithmeticError(f"the kernels are off by {errors}, allowed are {for_result} and {for_gradients}")
    return errors


def leaves(suite: Suite, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    m, p, q, t, d = shape
    return [torch.randn(s, device=suite.device).to(dtype).requires_grad_() for s in ((m, p, d), (q, t, d))]


def plain(v: Tensor, w: Tensor) -> Tensor:
    """The equation on all pairs at once, in the inputs' dtype."""
    v, w = F.normalize(v, dim=-1), F.normalize(w, dim=-1)
    return torch.einsum("mpd,qtd->mqtp", v, w).amax(3).mean(2)
