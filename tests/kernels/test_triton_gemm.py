"""GEMMs and their epilogues against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CHOICES, DTYPES, EPS, TOLERANCE, draw, dropouts, mask, worst
from torch import Tensor
from torch.nn import functional as F

from carzero.kernels import gemm
from carzero.kernels.epilogue import State
from carzero.kernels.outer import add_outer
from carzero.kernels.table import forced
from carzero.ops.rng import Site

#: R, K, N: below, at and beyond a tile of 64, and none of its multiples.
SHAPES = [(1, 16, 8), (64, 64, 64), (75, 96, 72), (130, 40, 130)]


def start(t: Tensor, dtype: torch.dtype) -> State:
    """The state of rows whose statistics are one tile's, as before the first layer."""
    shift = t.mean(-1)
    away = t - shift.unsqueeze(-1)
    partial = torch.stack((away.sum(-1), away.square().sum(-1)), -1).unsqueeze(1)
    return State(t, away.to(dtype), shift, partial, t.shape[1])


def folded(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    w = (weight * gamma).to(dtype)
    return w, w.float().sum(1), bias + weight @ beta


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_affine(multiplied: str, shape, dtype: torch.dtype, device: torch.device) -> None:
    r, k, n = shape
    a, w = draw(r, k, dtype=dtype, device=device), draw(n, k, seed=1, dtype=dtype, device=device)
    b = draw(n, seed=2, device=device)
    truth = F.linear(a.double(), w.double(), b.double())
    assert worst(gemm.affine(a, w, b), truth) <= TOLERANCE[dtype]
    assert worst(gemm.affine(a, w, b, relu=True), truth.relu()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shared", [True, False], ids=["shared queries", "own queries"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_and_dropout_draw_the_reference_masks(
    multiplied: str,
    dtype: torch.dtype,
    shared: bool,
    device: torch.device,
) -> None:
    m, q, k, n = 5, 15, 32, 136
    dropout = dropouts(m, q, device, shared=shared)
    a, w, b = draw(m * q, k, dtype=dtype, device=device), draw(n, k, seed=1, dtype=dtype, device=device), None
    b = torch.full((n,), 100.0, device=device)
    out = gemm.affine(a, w, b, relu=True, dropout=dropout, site=Site.FFN_HIDDEN)
    keeps = mask(dropout, Site.FFN_HIDDEN, n)
    # a bias of 100 leaves no element at 0 but by the mask
    assert torch.equal(out != 0, keeps > 0)
    assert 0.1 < (out == 0).double().mean() < 0.3
    truth = F.linear(a.double(), w.double(), b.double()).relu() * keeps
    assert worst(out, truth) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_of_the_operand(multiplied: str, shape, dtype: torch.dtype, device: torch.device) -> None:
    r, k, n = shape
    t, w, b = draw(r, k, device=device), draw(n, k, seed=1, device=device) * 0.1, draw(n, seed=2, device=device)
    gamma, beta = draw(k, seed=3, device=device), draw(k, seed=4, device=device)
    state = start(t, dtype)
    out = gemm.normed(state, *folded(w, b, gamma, beta, dtype), eps=EPS, relu=True)
    truth = F.linear(F.layer_norm(t.double(), (k,), gamma.double(), beta.double(), EPS), w.double(), b.double()).relu()
    assert worst(out, truth) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [75, 15], ids=["own rows", "repeated rows"])
def test_branches_add_up_and_leave_their_statistics(
    multiplied: str,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Two branches with dropout, then a normalised product: the state carries all that is needed."""
    m, q, d, k = 5, 15, 72, 40
    dropout = dropouts(m, q, device)
    t = draw(rows, d, device=device) + 3.0
    state, truth = start(t, dtype), t.double().repeat(m * q // rows, 1)
    for i, site in enumerate((Site.AFTER_OUT_PROJECTION, Site.AFTER_FFN)):
        a = draw(m * q, k, seed=5 + i, dtype=dtype, device=device)
        w, b = draw(d, k, seed=7 + i, dtype=dtype, device=device), draw(d, seed=9 + i, device=device)
        state = gemm.add_branch(state, a, w, b, eps=EPS, emit=True, dropout=dropout, site=site)
        truth = truth + F.linear(a.double(), w.double(), b.double()) * mask(dropout, site, d)
        # behind cuBLAS the product was rounded to the GEMM dtype
        assert worst(state.t, truth) <= 3 * TOLERANCE[dtype if multiplied == "cublas" else torch.float32]
    w, b = draw(24, d, seed=11, device=device) * 0.1, draw(24, seed=12, device=device)
    gamma, beta = draw(d, seed=13, device=device), draw(d, seed=14, device=device)
    out = gemm.normed(state, *folded(w, b, gamma, beta, dtype), eps=EPS)
    y = F.layer_norm(truth, (d,), gamma.double(), beta.double(), EPS)
    assert worst(out, F.linear(y, w.double(), b.double())) <= 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mean_far_above_the_deviation_does_not_cancel(
    multiplied: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Mean 1000, deviation 1: t in 16 bits would have steps of half a deviation, E[t^2] - mean^2 no digit left."""
    r, d, k, n = 70, 72, 40, 24
    t = draw(r, d, device=device) + 1000.0
    a, w, b = draw(r, k, dtype=dtype, device=device), draw(d, k, seed=1, dtype=dtype, device=device), None
    b = draw(d, seed=2, device=device)
    state = gemm.add_branch(start(t, dtype), a, w, b, eps=EPS, emit=True)
    truth = t.double() + F.linear(a.double(), w.double(), b.double())
    w2, b2 = draw(n, d, seed=3, device=device) * 0.1, draw(n, seed=4, device=device)
    ones, zeros = torch.ones(d, device=device), torch.zeros(d, device=device)
    out = gemm.normed(state, *folded(w2, b2, ones, zeros, dtype), eps=EPS)
    y = F.layer_norm(truth, (d,), None, None, EPS)
    # float32 rounds t itself to 6e-5
    assert worst(out, F.linear(y, w2.double(), b2.double())) <= 2 * TOLERANCE[dtype] + 6e-5


def test_a_finished_branch_is_added(device: torch.device) -> None:
    m, q, d = 3, 7, 72
    dropout = dropouts(m, q, device)
    t, branch = draw(q, d, device=device), draw(m * q, d, seed=1, device=device)
    state = gemm.add_finished(start(t, torch.float16), branch, torch.float16, eps=EPS, dropout=dropout, site=1)
    truth = t.double().repeat(m, 1) + branch.double() * mask(dropout, Site.AFTER_OUT_PROJECTION, d)
    assert worst(state.t, truth) <= TOLERANCE[torch.float32]
    assert state.x is not None
    assert state.shift is not None
    assert torch.allclose(state.shift, t.mean(-1).repeat(m), atol=1e-6)
    assert worst(state.x, truth - t.double().mean(-1, keepdim=True).repeat(m, 1)) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pull(multiplied: str, shape, dtype: torch.dtype, device: torch.device) -> None:
    r, n, k = shape
    dy, w = draw(r, n, dtype=dtype, device=device), draw(n, k, seed=1, dtype=dtype, device=device)
    h = draw(r, k, seed=2, dtype=dtype, device=device).relu()
    truth = dy.double() @ w.double()
    assert worst(gemm.pull(dy, w), truth) <= TOLERANCE[dtype]
    gated = gemm.pull(dy, w, gate=h, gate_scale=1.25)
    assert worst(gated, truth * (h > 0) * 1.25) <= TOLERANCE[dtype]


@pytest.mark.parametrize("who", ["triton", "cublas"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 16), (64, 64, 64), (75, 130, 72), (1100, 24, 40)], ids=str)
def test_outer_products_add_up(who: str, shape, dtype: torch.dtype, device: torch.device) -> None:
    r, n, k = shape
    # slices of wider buffers: rows that do not follow each other
    dy, x = (draw(r, w + 8, seed=w, dtype=dtype, device=device)[:, :w] for w in (n, k))
    runs = []
    for _ in range(2):
        d_weight, d_bias = draw(n, k, seed=3, device=device), draw(n, seed=4, device=device)
        with forced(CHOICES[who]):
            add_outer(d_weight, d_bias, dy, x)
        runs.append((d_weight, d_bias))
    assert all(torch.equal(first, second) for first, second in zip(*runs))
    truth = draw(n, k, seed=3, device=device).double() + dy.double().T @ x.double()
    # cuBLAS rounds a block's product to the dtype before it is added, as the `torch` backend does
    allowed = TOLERANCE[torch.float32] if who == "triton" else TOLERANCE[dtype]
    assert worst(d_weight, truth) <= 2 * allowed
    assert worst(d_bias, draw(n, seed=4, device=device).double() + dy.double().sum(0)) <= 2 * TOLERANCE[torch.float32]


def test_no_rows(device: torch.device) -> None:
    a, w, b = (torch.zeros(s, device=device) for s in ((0, 16), (24, 16), (24,)))
    assert gemm.affine(a, w, b).shape == (0, 24)
    assert gemm.pull(a, torch.zeros(16, 8, device=device)).shape == (0, 8)
    add_outer(w, b, torch.zeros(0, 24, device=device), a)
    assert w.abs().sum() == 0


def test_more_elements_than_32_bits_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a block of 2097152 rows of 1024 columns has 2\*\*31 elements or more"):
        gemm.check_size(2**21, 1024)
