"""Kernels of whole rows against float64 torch and its autograd."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, EPS, TOLERANCE, draw, dropouts, mask, worst
from torch.nn import functional as F

from carzero.kernels import rows
from carzero.ops.rng import Site

WIDTHS = [16, 72, 200]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", WIDTHS)
def test_norm_with_absent_rows(d: int, dtype: torch.dtype, device: torch.device) -> None:
    x, gamma, beta = draw(3, 11, d, dtype=dtype, device=device), draw(d, seed=1, device=device), None
    beta = draw(d, seed=2, device=device)
    count = torch.ones(3, 11, dtype=torch.int32, device=device)
    count[0, 4:], count[2, 0] = 0, 5
    clean = x.double().masked_fill((count == 0).unsqueeze(-1), 0.0)
    x[count == 0] = torch.nan
    out = rows.norm(x, gamma, beta, dtype, eps=EPS, present=count)
    assert worst(out, F.layer_norm(clean, (d,), gamma.double(), beta.double(), EPS)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("d", WIDTHS)
def test_linear_head(d: int, p: float, device: torch.device) -> None:
    m, q = 5, 7
    dropout = dropouts(m, q, device, p=p) if p else None
    x, gamma, beta, w = (draw(*s, seed=i, device=device) for i, s in enumerate(((m * q, d), (d,), (d,), (d,))))
    bias = draw(1, seed=9, device=device)
    y = F.layer_norm(x.double(), (d,), gamma.double(), beta.double(), EPS)
    if dropout is not None:
        y = y * mask(dropout, Site.BEFORE_HEAD, d)
    truth = y @ w.double() + bias.double()
    assert worst(rows.norm_dot(x, gamma, beta, w, bias, eps=EPS, dropout=dropout), truth) <= 2e-6
    assert worst(rows.norm(x, gamma, beta, torch.float32, eps=EPS, dropout=dropout), y) <= 2e-6
    assert worst(rows.dot(x, w, bias), x.double() @ w.double() + bias.double()) <= 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("d", WIDTHS)
def test_norm_backward(d: int, p: float, dtype: torch.dtype, device: torch.device) -> None:
    m, q = 5, 19
    dropout = dropouts(m, q, device, p=p) if p else None
    x, gamma, beta, dt = (draw(*s, seed=i, device=device) for i, s in enumerate(((m * q, d), (d,), (d,), (m * q, d))))
    dy = draw(m * q, d, seed=8, dtype=dtype, device=device)
    keeps = {s: 1.0 if dropout is None else mask(dropout, s, d) for s in (Site.BEFORE_HEAD, Site.AFTER_FFN)}
    leaves = [t.double().requires_grad_() for t in (x, gamma, beta)]
    y = F.layer_norm(leaves[0], (d,), *leaves[1:], EPS)
    dx, d_gamma, d_beta = torch.autograd.grad(y, leaves, dy.double() * keeps[Site.BEFORE_HEAD])

    sums = rows.norm_sums(d, device)
    y_out, g_out = (torch.full((m * q, d), torch.nan, dtype=dtype, device=device) for _ in range(2))
    options = {"eps": EPS, "dy_dropout": dropout, "g_dropout": dropout, "g_site": Site.AFTER_FFN}
    got = rows.norm_backward(dy, x, gamma, beta, sums, dt=dt.clone(), y=y_out, g=g_out, **options)
    assert worst(got, dx + dt.double()) <= 3e-6
    assert worst(g_out, (dx + dt.double()) * keeps[Site.AFTER_FFN]) <= TOLERANCE[dtype]
    if dropout is not None:
        assert torch.equal(g_out != 0, keeps[Site.AFTER_FFN] > 0)
    assert worst(y_out, y.detach()) <= TOLERANCE[dtype]
    assert worst(sums.sum(0)[0], d_gamma) <= 3e-6
    assert worst(sums.sum(0)[1], d_beta) <= 3e-6

    # without a gradient to add to, and into sums that hold something
    assert worst(rows.norm_backward(dy, x, gamma, beta, sums, eps=EPS, dy_dropout=dropout), dx) <= 3e-6
    assert worst(sums.sum(0)[0], 2 * d_gamma) <= 3e-6
