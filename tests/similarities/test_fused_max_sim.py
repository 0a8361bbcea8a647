"""MaxSim by the Triton kernels, through Triton's interpreter where there is no GPU, against float64."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.similarities import choose, max_sim, reference, vl_cabs, word_region

pytest.importorskip("triton", reason="triton: not installed")

DEVICE = torch.device(os.environ.get("CARZERO_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))
#: Relative L2 error of results and of gradients: operands are normalised and rounded again, and so is the gradient of a
#: score where it is an operand.
TOLERANCE = {torch.float32: (1e-6, 1e-6), torch.float16: (1e-3, 2e-3), torch.bfloat16: (8e-3, 1.6e-2)}
#: What is least between the best and the second row of a token: more than rounding moves a cosine by, 2^-9 / sqrt(D).
MARGIN = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
# the interpreter multiplies the bit patterns of bfloat16
DTYPES = [dtype for dtype in TOLERANCE if DEVICE.type == "cuda" or dtype != torch.bfloat16]
PROGRAM = Path(__file__).with_name("fake_cuda_program.py")


@pytest.fixture(autouse=True)
def _able(need) -> None:
    need("triton", DEVICE.type)


def leaves(
    m: int, p: int, q: int, t: int, d: int, dtype: torch.dtype, rows: Tensor | None = None, normalise: bool = True
) -> list[Tensor]:
    """Normal numbers, tokens drawn again until rounding leaves each its best row: another one has another gradient."""
    generator = torch.Generator().manual_seed(0)
    memory, queries = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((m, p, d), (q, t, d))
    )
    absent = torch.zeros(m, p, dtype=torch.bool) if rows is None else rows.cpu() == 0
    while True:
        pair = [F.normalize(x.double(), dim=-1) if normalise else x.double() for x in (memory, queries)]
        scores = torch.einsum("mpd,qtd->mqtp", *pair).masked_fill(absent[:, None, None], -torch.inf)
        top = scores.topk(min(2, p)).values
        near = (top[..., 0] - top[..., -1] < MARGIN[dtype]).any(0) & (p > 1)
        if not near.any():
            return [x.to(DEVICE).requires_grad_() for x in (memory, queries)]
        queries[near] = torch.randn(int(near.sum()), d, generator=generator, dtype=torch.float64).to(dtype)


def counts(m: int, p: int, q: int, t: int) -> tuple[Tensor, Tensor]:
    """Absent rows, repeated ones, a memory and a query of none."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(0, 3, shape, generator=generator, dtype=torch.int32) for shape in ((m, p), (q, t))]
    made[0][0], made[0][1] = 0, 1
    made[1][-1] = 0
    return made[0].to(DEVICE), made[1].to(DEVICE)


def truth(
    given: list[Tensor], rows: Tensor | None, tokens: Tensor | None, normalise: bool, mean: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Result, leaves and cotangent, float64."""
    exact = [x.detach().double().requires_grad_() for x in given]
    rows, tokens = (
        torch.ones(x.shape[:2], dtype=torch.float64, device=x.device) if count is None else count.double()
        for x, count in zip(exact, (rows, tokens))
    )
    # absent rows hold what was drawn: the reference masks their scores
    out = reference.max_sim(*exact, rows, tokens, normalise, mean)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.device)
    return out, exact, cotangent


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def compare(
    shape: tuple[int, ...], dtype: torch.dtype, normalise: bool = True, mean: bool = True, *, counted: bool = False,
    tile: int | None = None,
) -> None:  # fmt: skip
    """Result and gradients; with counts, absent rows and tokens hold NaN."""
    rows, tokens = counts(*shape[:4]) if counted else (None, None)
    given = leaves(*shape, dtype, rows, normalise)
    exact, exact_leaves, cotangent = truth(given, rows, tokens, normalise, mean)
    if rows is not None and tokens is not None:
        given = [
            x.detach().masked_fill((count == 0).unsqueeze(-1), torch.nan).requires_grad_()
            for x, count in zip(given, (rows, tokens))
        ]
    for_results, for_gradients = TOLERANCE[given[0].dtype]
    wanted = torch.autograd.grad(exact, exact_leaves, cotangent)
    out = max_sim(
        *given, row_count=rows, token_count=tokens, normalise=normalise, mean=mean, backend="triton", tile_scores=tile
    )
    found = torch.autograd.grad(out, given, cotangent.to(out.dtype))
    assert out.dtype == given[0].dtype
    assert relative(out.detach(), exact.detach()) <= for_results
    for gradient, right, x in zip(found, wanted, given):
        assert gradient.dtype == x.dtype
        assert relative(gradient, right) <= for_gradients
    if counted:
        assert not out[0].any()
        assert not out[:, -1].any()


#: (M, P, Q, T, D): one row, some rows of several memories in a tile, a tile, several; tokens below and above a tile.
SHAPES = [(6, 1, 3, 1, 16), (5, 9, 3, 5, 40), (3, 98, 1, 5, 72), (2, 197, 3, 24, 80), (4, 17, 1, 1, 16)]
#: The interpreter takes seconds for what a GPU does in a millisecond: a half of these runs every time.
HALF = {(shape, DTYPES[number % 2]) for number, shape in enumerate(SHAPES)}
CASES = [
    pytest.param(shape, dtype, marks=[] if (shape, dtype) in HALF or DEVICE.type == "cuda" else pytest.mark.slow)
    for shape in SHAPES
    for dtype in DTYPES
]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_results_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("normalise", "mean"), list(itertools.product((True, False), repeat=2)))
def test_absent_and_repeated_rows_and_tokens(normalise: bool, mean: bool, dtype: torch.dtype) -> None:
    """One memory has no row, one query no token."""
    compare((5, 9, 3, 5, 24), dtype, normalise, mean, counted=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_give_equal_bits(dtype: torch.dtype) -> None:
    """Counted rows in several tiles, and a cotangent that is not one number."""
    compare((3, 98, 2, 24, 24), dtype, counted=True)
    rows, tokens = counts(3, 98, 2, 24)
    given = leaves(3, 98, 2, 24, 24, dtype, rows)
    runs = []
    for _ in range(2):
        out = max_sim(*given, row_count=rows, token_count=tokens, backend="triton")
        runs.append((out, *torch.autograd.grad(out.square().sum(), given)))
    assert all(torch.equal(first, second) for first, second in zip(*runs))


@pytest.mark.parametrize("tile", [1, 2 * 9 * 5 * 2])
def test_tiles_add_up(tile: int) -> None:
    """Of one memory and one query; of two of either."""
    compare((3, 9, 3, 5, 24), torch.float32, counted=True, tile=tile)


def test_the_first_of_equal_rows_is_found_across_tiles_and_absent_ones_never() -> None:
    """Equal rows in one tile of the kernel and in several, NaN where rows are absent, a memory without any."""
    from carzero.kernels.max_sim import max_sim as best_rows

    v = torch.zeros(3, 200, 16, device=DEVICE)
    count = torch.ones(3, 200, dtype=torch.int32, device=DEVICE)
    v[0, [3, 7, 66, 199], 0] = 1.0
    v[1, [70, 140], 0] = 1.0
    v[1, [2, 69]], count[1, [2, 69]] = torch.nan, 0
    v[2], count[2] = torch.nan, 0
    w = torch.eye(16, device=DEVICE)[:2]
    best, index = best_rows(v, w, count, index=True)
    assert index is not None
    assert best.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert index.tolist() == [[3, 0], [70, 0], [-1, -1]]
    # several memories in a tile
    few, counts_of_few = v[:, 1:10].contiguous(), count[:, 1:10].contiguous()
    best, index = best_rows(few, w, counts_of_few, index=True)
    assert index is not None
    assert best.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert index.tolist() == [[2, 0], [0, 0], [-1, -1]]


def test_gradients_of_half_precision_may_be_small() -> None:
    """A gradient of 1e-9 is none in half precision; it is scaled where it is an operand."""
    given = [x.detach().float() for x in leaves(5, 9, 3, 5, 24, torch.float16)]
    halves = [x.half().requires_grad_() for x in given]
    from carzero.kernels.max_sim import max_sim as best_rows
    from carzero.kernels.max_sim import max_sim_backward

    v, w = halves[0].detach(), halves[1].detach().flatten(0, 1)
    _, index = best_rows(v, w, index=True)
    assert index is not None
    g = torch.randn(index.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE) * 1e-9
    d_v, d_w = max_sim_backward(v, w, g, index)
    one_hot = torch.nn.functional.one_hot(index.long(), v.shape[1]) * g.double().unsqueeze(2)
    assert relative(d_v, torch.einsum("mnp,nd->mpd", one_hot, w.double())) < 1e-3
    assert relative(d_w, torch.einsum("mnp,mpd->nd", one_hot, v.double())) < 1e-6


def test_ties_give_the_gradient_to_the_first_row() -> None:
    memory = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]], device=DEVICE, requires_grad=True)
    queries = torch.tensor([[[2.0, 0.0]]], device=DEVICE)
    out = max_sim(memory, queries, normalise=False, mean=False, backend="triton")
    (grad,) = torch.autograd.grad(out.sum(), memory)
    assert out.item() == 2.0
    assert grad.tolist() == [[[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]]


def test_nan_and_infinity_pass_as_in_torch() -> None:
    memory, queries = (x.detach() for x in leaves(3, 70, 2, 3, 16, torch.float32))
    memory[1, 66] = torch.nan
    memory[2] = -1.0
    queries[0, 1] = torch.inf
    queries[1, 0] = torch.nan
    for row in (memory, memory.abs()):
        ours, plain = (max_sim(row, queries, normalise=False, mean=False, backend=name) for name in ("triton", "torch"))
        assert torch.equal(ours.isnan(), plain.isnan())
        assert plain.isinf().any()
        torch.testing.assert_close(ours, plain, equal_nan=True)


def test_no_memories_and_no_queries() -> None:
    memory, queries = leaves(3, 9, 2, 5, 16, torch.float32)
    for m, q in ((0, 2), (3, 0)):
        out = max_sim(memory[:m], queries[:q], backend="triton")
        assert out.shape == (m, q)
        grads = torch.autograd.grad(out.sum(), (memory, queries))
        assert not any(grad.any() for grad in grads)


def test_autocast_multiplies_narrow_and_returns_wide() -> None:
    memory, queries = (x.detach().float().requires_grad_() for x in leaves(3, 9, 2, 5, 16, torch.float16))
    with torch.autocast(DEVICE.type, dtype=torch.float16):
        out = max_sim(memory, queries, backend="triton")
    assert out.dtype == torch.float32
    halves = max_sim(memory.half(), queries.half(), backend="triton")
    assert torch.equal(out.half(), halves)
    assert {grad.dtype for grad in torch.autograd.grad(out.sum(), (memory, queries))} == {torch.float32}


def test_who_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"kind": "max_sim", "device": DEVICE, "dtype": torch.float32}
    assert choose("triton", **call) == ("triton", "asked for")
    assert choose("auto", **call)[0] == "torch"
    monkeypatch.setenv("CARZERO_BACKEND", "triton")
    assert choose("auto", **call) == ("triton", "CARZERO_BACKEND=triton")
    memory, queries = leaves(3, 9, 2, 5, 16, torch.float32)
    with pytest.raises(RuntimeError, match=r"CARZERO_BACKEND=triton .* cannot run word_region: its kernels are those"):
        word_region(memory, queries)
    monkeypatch.delenv("CARZERO_BACKEND")
    with pytest.raises(RuntimeError, match=r"backend='triton' .* cannot run vl_cabs: .* Use backend='torch'"):
        vl_cabs(memory, queries[:, 0], backend="triton")
    with pytest.raises(RuntimeError, match="supports float32, bfloat16 and float16, not float64"):
        max_sim(memory.double(), queries.double(), backend="triton")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about a machine without a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = leaves(3, 9, 2, 5, 16, torch.bfloat16)
    with pytest.raises(RuntimeError, match="interpreter multiplies the bit patterns of bfloat16"):
        max_sim(memory, queries, backend="triton")
    name, why = choose("auto", kind="max_sim", device="cuda", dtype=torch.bfloat16)
    assert name == "torch"
    assert why.endswith("not triton: there is no CUDA device")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match=r"cannot run max_sim: runs on CUDA devices; on a CPU only in tests"):
        max_sim(memory, queries, backend="triton")


def test_auto_waits_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    from carzero.similarities import registration

    monkeypatch.setattr(registration, "available", lambda *_: (True, "triton"))
    name, why = choose("auto", kind="max_sim", device="cuda", dtype=torch.bfloat16)
    assert name == "torch"
    assert why.endswith("not triton: not yet measured to be faster; ask for it by name")


def test_fake_cuda_tensors_propagate() -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["both"] == [
        [[3, 2], "torch.bfloat16", "cuda"],
        [[3, 9, 16], "torch.bfloat16", "cuda"],
        [[2, 5, 16], "torch.bfloat16", "cuda"],
    ]
    assert found["make_fx"] == ["carzero.similarity.default", "carzero.similarity_backward.default"]
    assert found["public"] == [[3, 2], "torch.bfloat16", "cuda"]
