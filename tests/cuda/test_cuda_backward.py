"""The backward kernels' source, run on the CPU, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from cases import counts, inputs
from emulated import SM80, SM90, SM90_MMA, Device, Drop, Run, backward, forward, relative, truth
from torch import Tensor

#: m, Q, P, H, K, device, counts, q shared: every variant, one and several blocks of keys, one and several groups of
#: queries, keys in one chunk and in several.
SHAPES = [
    (2, 7, 9, 2, 192, SM80, False, False),
    (3, 70, 20, 1, 192, SM80, True, False),
    (1, 33, 98, 1, 192, SM90_MMA, False, False),
    (1, 20, 197, 1, 192, SM80, False, False),
    (1, 18, 256, 1, 192, SM80, False, True),
    (1, 5, 256, 1, 256, SM80, False, False),
    (3, 17, 20, 2, 64, SM80, True, True),
    (2, 5, 40, 2, 16, SM80, False, True),
    (3, 9, 40, 1, 128, SM80, True, False),
    (3, 9, 40, 1, 256, SM90, True, False),
    (2, 1, 1, 2, 96, SM80, False, False),
]


def run_both(
    library, shape: tuple, dtype: torch.dtype, dropout: bool, **order
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, list[Run]]:
    """Our gradients and the true ones by name, what was added to d_kv before, and the kernels' facts."""
    m, n, p, heads, width, device, counted, shared = shape
    q, k, v = inputs(m, n, p, heads, width, dtype, shared=shared)
    count = counts(m, p) if counted else None
    drop = Drop.draw(m, n, p + 40 if counted else p, shared=not shared) if dropout else None
    generator = torch.Generator().manual_seed(3)
    d_out = torch.randn(m, n, heads * width, generator=generator).to(dtype)
    before = torch.randn(m, p, 2, heads * width, generator=generator)
    if count is not None:
        k[count == 0] = v[count == 0] = torch.nan
    out, lse, _, _ = forward(library, q, k, v, heads, count=count, drop=drop, device=device, **order)
    d_kv = before.clone()
    d_q, runs = backward(library, d_out, q, k, v, out, lse, heads, d_kv, count=count, drop=drop, device=device, **order)
    assert all(run.conflicts == 0 for run in runs)
    leaves = [x.nan_to_num(0.0).double().requires_grad_() for x in (q, k, v)]
    exact = torch.autograd.grad(truth(*leaves, heads, count, drop)[0], leaves, d_out.double())
    ours = {"q": d_q.sum(0, keepdim=True) if shared else d_q, "k": d_kv[:, :, 0], "v": d_kv[:, :, 1]}
    return ours, dict(zip("qkv", exact, strict=True)), before, runs


@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"m{s[0]}-Q{s[1]}-P{s[2]}-H{s[3]}-K{s[4]}-{s[6]}")
def test_equals_float64(library, shape: tuple, dtype: torch.dtype, dropout: bool) -> None:
    ours, exact, before, _ = run_both(library, shape, dtype, dropout)
    # weights, their gradients and the output are rounded to 8 or 11 bits: a few half-ulps, whose signs differ
    most = 6e-3 if dtype == torch.bfloat16 else 8e-4
    assert relative(ours["v"] - before[:, :, 1], exact["v"]) < most
    if shape[2] == 1:
        # one row has all the weight whatever the scores: 0, of which the rounding of `out` is left; numbers of size 1
        assert exact["q"].norm() == exact["k"].norm() == 0
        assert ours["q"].abs().max() < 5 * most
        assert (ours["k"] - before[:, :, 0]).abs().max() < 10 * most
        return
    assert relative(ours["q"], exact["q"]) < most
    assert relative(ours["k"] - before[:, :, 0], exact["k"]) < most


def test_absent_rows_get_no_gradient(library) -> None:
    shape = (3, 17, 20, 2, 64, SM80, True, False)
    ours, _, before, _ = run_both(library, shape, torch.float16, True)
    absent = counts(3, 20) == 0
    for i, name in enumerate("kv"):
        assert torch.equal(ours[name][absent], before[:, :, i][absent])
    assert torch.equal(ours["q"][2], torch.zeros_like(ours["q"][2]))


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
@pytest.mark.parametrize("reverse", [False, True], ids=["in-order", "reverse"])
def test_no_order_of_warps_and_copies_changes_a_bit(library, reverse: bool, eager: bool) -> None:
    """Several stages of queries, several groups that add up, keys in several chunks."""
    for shape in ((1, 150, 20, 1, 64, SM80, True, False), (1, 40, 96, 1, 128, Device(46000, 1), False, False)):
        first, *_ = run_both(library, shape, torch.float16, True)
        again, *_ = run_both(library, shape, torch.float16, True, reverse=reverse, eager=eager)
        assert all(torch.equal(first[name], again[name]) for name in "qkv")
