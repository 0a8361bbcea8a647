"""Each GEMM of the Triton backend three ways: epilogue in the product's registers, behind cuBLAS, and in plain torch.

The rows are what `benchmarks/gpu_table.py` writes `kernels/table.json` from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.ops.backends import available
from carzero.ops.rng import Site, keep_scale, threshold

from .suite import Suite
from .timing import take_turns

#: Pairs of a block: memories and queries.
GRID = (64, 256)
EPS, P = 1e-5, 0.1
#: A candidate whose result is further from cuBLAS's than two roundings to bfloat16 is wrong.
TOLERANCE = 2.0**-6


def run(suite: Suite) -> None:
    """A row for each shape that the table has a row of its own for, on this device."""
    able, why = available("triton", suite.device)
    if not able:
        suite.row("GEMM and epilogue", lambda: {"absent": why})
        return
    from carzero.kernels import table

    device = table.target(suite.device)
    if suite.dry:
        shapes = [("branch", 32, 48, True), ("pull_gated", 48, 32, False), ("outer", 32, 48, False)]
    else:
        shapes = [(r.role, r.k, r.n, r.dropout) for r in table.rows() if r.device == device and r.bits == 16 and r.k]
    for role, k, n, dropout in shapes:
        name = f"GEMM and epilogue: {role} {k}x{n}" + (", dropout" if dropout else "")
        suite.row(
            name,
            lambda role=role, k=k, n=n, dropout=dropout: measure(suite, role, k, n, dropout),
            seconds=40,
        )


def measure(suite: Suite, role: str, k: int, n: int, dropout: bool) -> dict[str, Any]:
    """Times, and the choices that they belong to; candidates that are wrong or do not run say so."""
    from carzero.kernels import table

    m, q = (3, 5) if suite.dry else GRID
    dtype = torch.float32 if suite.dry else torch.bfloat16
    fused, plain = problem(role, k, n, dropout, m, q, dtype, suite.device)
    listed = table.choose(role, suite.device, dtype, k, n, dropout=dropout)
    choices = {"cublas": replace(listed, by="cublas")}
    choices |= {label(c): c for c in candidates(replace(listed, by="triton"), dropout, suite.dry)}
    with table.forced(choices["cublas"]):
        truth = fused()
    found: dict[str, Any] = {"shape": f"R={m * q} K={k} N={n}", "role": role, "k": k, "n": n, "dropout": dropout}
    runs: dict[str, Callable[[], object]] = {"cublas and torch": plain}
    contenders: dict[str, dict[str, Any]] = {}
    for name, choice in choices.items():

        def forced(choice: table.Choice = choice) -> Tensor:
            with table.forced(choice):
                return fused()

        try:
            error = float((forced().float() - truth.float()).abs().max() / truth.float().abs().max())
        except RuntimeError as problem_:
            # a candidate may need more than the device has
            contenders[name] = {"not_run": str(problem_).splitlines()[0][:200]}
            continue
        if not error <= TOLERANCE:
            contenders[name] = {"wrong": error}
            continue
        runs[name] = forced
    for name, time in take_turns(runs, suite.device, rounds=suite.rounds()).items():
        choice = asdict(choices[name]) if name in choices else None
        contenders[name] = {**time, "flops_per_s": 2 * m * q * k * n / time["seconds"], "choice": choice}
    return {**found, "contenders": contenders}


def candidates(listed: Any, dropout: bool, dry: bool) -> list[Any]:
    """The table's own tile, and its neighbours."""
    if dry:
        return [listed]
    bm, _, bk = listed.block
    found = [listed, replace(listed, flatten=True), replace(listed, stages=4)]
    if dropout:
        found.append(replace(listed, drawn_once=not listed.drawn_once))
    found.append(replace(listed, block=(bm, 128, bk), halves=True))
    found.append(replace(listed, block=(bm, 256, bk), halves=True))
    return list(dict.fromkeys(found))


def label(choice: Any) -> str:
    more = (", halves" if choice.halves else "") + (", flatten" if choice.flatten else "")
    more += ", drawn once" if choice.drawn_once else ""
    return f"triton {'x'.join(map(str, choice.block))}, {choice.warps} warps, {choice.stages} stages{more}"


def problem(
    role: str, k: int, n: int, dropout: bool, m: int, q: int, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One GEMM with its epilogue, as the backend runs it, and as plain torch with torch's own dropout."""
    from carzero.kernels import gemm, outer
    from carzero.kernels.epilogue import State
    from carzero.kernels.philox import Dropout

    rows = m * q
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, as_: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).mul_(shape[-1] ** -0.5).to(as_)

    def state(width: int) -> State:
        t = torch.randn(rows, width, generator=generator, device=device)
        away = t - t.mean(-1, keepdim=True)
        partial = torch.stack((away.sum(-1), away.square().sum(-1)), -1).unsqueeze(1)
        return State(t, away.to(dtype), t.mean(-1), partial, width)

    masks, p = None, P if dropout else 0.0
    if dropout:
        memory, query = torch.arange(m, device=device), torch.arange(q, device=device).unsqueeze(0)
        seed = torch.tensor([1], device=device)
        masks = Dropout(seed, threshold(P), keep_scale(P), 0, 0, memory, query, 0)
    a, weight, bias = draw(rows, k), draw(n, k), draw(n, as_=torch.float32)
    if role == "norm":
        s, sums = state(k), weight.float().sum(1)
        return (
            lambda: gemm.normed(s, weight, sums, bias, eps=EPS, relu=True, dropout=masks, site=Site.FFN_HIDDEN),
            lambda: F.dropout(F.linear(F.layer_norm(s.t, (k,)).to(dtype), weight, bias.to(dtype)).relu(), p),
        )
    if role == "affine":
        return (
            lambda: gemm.affine(a, weight, bias, relu=True, dropout=masks, site=Site.HEAD_HIDDEN_1),
            lambda: F.dropout(F.linear(a, weight, bias.to(dtype)).relu(), p),
        )
    if role == "branch":
        s = state(n)
        return (
            lambda: gemm.add_branch(s, a, weight, bias, eps=EPS, emit=True, dropout=masks, site=Site.AFTER_FFN).t,
            lambda: s.t + F.dropout(F.linear(a, weight, bias.to(dtype)), p),
        )
    if role == "outer":
        x, d_weight, d_bias = draw(rows, n), torch.zeros(k, n, device=device), torch.zeros(k, device=device)

        def fresh() -> Tensor:
            # into zeros: so that results of several runs can be compared
            outer.add_outer(d_weight.zero_(), d_bias, a, x)
            return d_weight

        return fresh, lambda: d_weight.zero_().add_(a.T @ x)
    gate = draw(rows, n) if role == "pull_gated" else None
    back = weight.T.contiguous()
    return (
        lambda: gemm.pull(a, back, gate=gate),
        lambda: a @ back if gate is None else (a @ back) * (gate > 0),
    )
