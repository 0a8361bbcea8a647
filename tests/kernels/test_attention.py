"""The attention kernels, forward and every gradient, against attention in float64 and the reference's masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from carzero.kernels import attention, attention_call
from carzero.kernels import attention_backward as attention_backward_module
from carzero.kernels.attention import attention_forward
from carzero.kernels.attention_backward import attention_backward
from carzero.kernels.philox import Dropout
from carzero.ops.masks import PairMasks, original_rows
from carzero.ops.rng import keep_scale, threshold

SEED, LAYER, DIRECTION = 123456789012345, 2, 1
#: Layers beside the one that is used: k and v are views of a buffer of all layers.
LAYERS = 2


@pytest.fixture(autouse=True)
def tiles(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """Through the interpreter Hopper's tiles for 16 bits, or "ampere", or "small"; on a GPU the device's own."""
    which = getattr(request, "param", "hopper")
    number = {"hopper": 90, "ampere": 80}.get(which)
    if device.type != "cuda" and number is not None:
        monkeypatch.setattr(attention_call, "target", lambda _: number)
        forward, backward = attention.forward_tiles, attention_backward_module.backward_tiles
        monkeypatch.setattr(attention, "forward_tiles", lambda _, __, *a, **k: forward(number, torch.float16, *a, **k))
        monkeypatch.setattr(
            attention_backward_module, "backward_tiles", lambda _, __, *a, **k: backward(number, torch.float16, *a, **k)
        )
    return which


class Bound(NamedTuple):
    """Largest relative L2 error and why."""

    value: float
    reason: str


BOUNDS = {
    (torch.float32, "forward"): Bound(2e-6, "sums of up to 192 products and 577 weights, 1.2e-7 each"),
    (torch.float32, "gradient"): Bound(5e-6, "the same twice, and the difference da - delta"),
    (torch.float16, "forward"): Bound(1e-3, "weights and results have 11 bits: half an ulp is 4.9e-4"),
    (torch.float16, "gradient"): Bound(3e-3, "ds, the weights, out and its gradient are rounded to 11 bits each"),
    (torch.bfloat16, "forward"): Bound(8e-3, "weights and results have 8 bits: half an ulp is 3.9e-3"),
    (torch.bfloat16, "gradient"): Bound(2e-2, "ds, the weights, out and its gradient are rounded to 8 bits each"),
}


@dataclass
class Problem:
    """Tensors of one call; k and v are views ``[m, P, D]`` of kv ``[m, P, L, 2, D]``."""

    q: Tensor
    kv: Tensor
    do: Tensor
    heads: int
    count: Tensor | None
    p: float

    @classmethod
    def of(
        cls, device: torch.device, dtype: torch.dtype, m: int, queries: int, rows: int, *, width: int = 32,
        heads: int = 2, count: Tensor | None = None, p: float = 0.0, shared: bool = False,
    ) -> Problem:  # fmt: skip
        generator = torch.Generator().manual_seed(m + 10 * queries + 1000 * rows)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

        d = width * heads
        kv = normal(m, rows, LAYERS, 2, d)
        if count is not None:
            count = count.to(device=device, dtype=torch.int32)
            kv[count == 0] = float("nan")
        return cls(normal(1 if shared else m, queries, d), kv, normal(m, queries, d), heads, count, p)

    @property
    def k(self) -> Tensor:
        return self.kv[:, :, 1, 0]

    @property
    def v(self) -> Tensor:
        return self.kv[:, :, 1, 1]

    @property
    def scale(self) -> float:
        return (self.q.shape[-1] // self.heads) ** -0.5

    @property
    def columns(self) -> int:
        return original_rows(self.count, self.kv.shape[1])

    def indices(self) -> tuple[Tensor, Tensor]:
        """Global memory indices ``[m]`` in no order, query indices ``[1, Q]``."""
        m, queries = self.do.shape[:2]
        device = self.q.device
        return 70000 + 3 * torch.arange(m, device=device).flip(0), 5 + torch.arange(queries, device=device)[None]

    def dropout(self) -> Dropout | None:
        if self.p == 0.0:
            return None
        seed = torch.tensor([SEED], device=self.q.device)
        return Dropout(
            seed, threshold(self.p), keep_scale(self.p), LAYER, DIRECTION, *self.indices(), columns=self.columns
        )

    def multipliers(self) -> Tensor | float:
        """``[m, H, Q, P]`` of the reference, float64."""
        if self.p == 0.0:
            return 1.0
        memory, query = self.indices()
        seed = torch.tensor([SEED], device=self.q.device)
        masks = PairMasks(memory[:, None], query, self.columns, seed, self.p, DIRECTION, torch.float64)
        return masks.attention(LAYER, self.heads, self.kv.shape[1], self.count)

    def ours(self, maps: bool = True) -> dict[str, Tensor]:
        """Forward and backward of the kernels; outputs start as NaN, gradients of k and v as ones."""
        (m, queries, d), rows = self.do.shape, self.kv.shape[1]
        wide = {"dtype": torch.float32, "device": self.q.device}
        out = torch.full_like(self.do, float("nan"))
        lse = torch.full((m, self.heads, queries), float("nan"), **wide)
        averaged = torch.full((m, queries, rows), float("nan"), **wide)
        how = {"heads": self.heads, "scale": self.scale, "count": self.count, "dropout": self.dropout()}
        same = attention_forward(
            self.q, self.k, self.v, **how, out=out, lse=lse, maps=averaged if maps else None
        )  # fmt: skip
        assert same is out
        d_q = torch.full((m, queries, d), float("nan"), **wide)
        d_kv = torch.ones(m, rows, LAYERS, 2, d, **wide)
        attention_backward(
            self.do, self.q, self.k, self.v, out, lse, **how, d_q=d_q, d_k=d_kv[:, :, 1, 0], d_v=d_kv[:, :, 1, 1]
        )
        assert bool((d_kv[:, :, 0] == 1).all()), "another layer's gradients were written to"
        found = {"out": out, "lse": lse, "maps": averaged, "q": d_q, "k": d_kv[:, :, 1, 0], "v": d_kv[:, :, 1, 1]}
        if not maps:
            del found["maps"]
        return found

    def truth(self) -> dict[str, Tensor]:
        """The same in float64 by autograd."""
        q, k, v = (t.double().nan_to_num(0.0).requires_grad_() for t in (self.q.expand_as(self.do), self.k, self.v))

        def by_head(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        e = (by_head(q) @ by_head(k).transpose(-1, -2) * self.scale).exp()
        if self.count is not None:
            e = e * self.count[:, None, None]
        total = e.sum(-1, keepdim=True)
        a = torch.where(total > 0, e / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(e))
        out = ((a * self.multipliers()) @ by_head(v)).transpose(1, 2).flatten(2)
        grads = torch.autograd.grad(out, (q, k, v), self.do.double())
        lse = torch.where(total > 0, total.log(), torch.full_like(total, float("inf"))).squeeze(-1)
        found = {"out": out, "lse": lse, "maps": a.mean(1), "q": grads[0], "k": grads[1] + 1, "v": grads[2] + 1}
        return {name: value.detach() for name, value in found.items()}


def error(ours: Tensor, truth: Tensor, least: float) -> float:
    """L2 relative to that of the truth, or to `least` if larger; infinities must be equal and then do not count."""
    ours = ours.double()
    infinite = truth.isinf()
    assert torch.equal(ours[infinite], truth[infinite])
    ours, truth = ours.masked_fill(infinite, 0.0), truth.masked_fill(infinite, 0.0)
    return float((ours - truth).norm() / truth.norm().clamp(min=max(least, 1e-30)))


def check(problem: Problem, maps: bool = True) -> None:
    ours, truth = problem.ours(maps), problem.truth()
    for name, value in ours.items():
        part = "gradient" if name in ("q", "k", "v") else "forward"
        dtype = torch.float32 if name in ("lse", "maps") and problem.q.dtype == torch.float32 else problem.q.dtype
        # of one row alone, gradients of q and k are 0: their terms are as large as do
        least = float(problem.do.double().norm()) if name in ("q", "k") else 0.0
        found = error(value, truth[name], least)
        assert found <= BOUNDS[dtype, part].value, (name, found)


def collapsed(m: int, rows: int) -> Tensor:
    """Counts of each memory: an absent row, a row of several in the middle, a padding of many at the end; one empty."""
    count = torch.ones(m, rows, dtype=torch.int32)
    if rows > 4:
        count[0, 1] = 0
        count[0, 2], count[0, 3] = 2, 0
    count[0, -1] = 150
    if m > 1:
        count[1] = 0
    return count


# tiles hold 64 or 32 queries: 67 leave a ragged one
@pytest.mark.parametrize(
    ("tiles", "rows"),
    [("hopper", 1), ("hopper", 9), ("hopper", 98), ("hopper", 197), ("hopper", 257), ("hopper", 577), ("small", 70)],
    indirect=["tiles"],
)
def test_rows_in_float32(device: torch.device, rows: int) -> None:
    check(Problem.of(device, torch.float32, 1, 67 if rows < 100 else 5, rows, width=16))


@pytest.mark.parametrize("rows", [9, 197, 577])
def test_rows_in_float16(device: torch.device, rows: int) -> None:
    check(Problem.of(device, torch.float16, 1, 5, rows, width=16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's interpreter multiplies the words of bfloat16")
@pytest.mark.parametrize("rows", [1, 9, 98, 197, 257, 577])
def test_rows_in_bfloat16_on_a_gpu(device: torch.device, rows: int) -> None:
    check(Problem.of(device, torch.bfloat16, 3, 130, rows, width=192, heads=4, p=0.1))


# 192 = 128 + 64; 48 = 32 + 16; 112 = 64 + 48, in a part of 64
@pytest.mark.parametrize("width", [192, 48, 112, 256])
@pytest.mark.parametrize("rows", [9, 70])
def test_widths_of_a_head(device: torch.device, width: int, rows: int) -> None:
    check(Problem.of(device, torch.float32, 1, 5, rows, width=width, heads=1 + (rows == 9)), maps=rows == 9)


@pytest.mark.parametrize(
    ("tiles", "dtype", "rows"),
    [
        ("hopper", torch.float32, 1), ("hopper", torch.float32, 9), ("hopper", torch.float32, 70),
        pytest.param("hopper", torch.float32, 300, marks=pytest.mark.slow), ("hopper", torch.float16, 9),
        ("small", torch.float32, 40),
    ],
    indirect=["tiles"],
    ids=str,
)  # fmt: skip
def test_row_counts_and_dropout(device: torch.device, dtype: torch.dtype, rows: int) -> None:
    """Absent rows hold NaN; equal rows are one; a memory without rows gives 0; dropout counts lanes."""
    check(Problem.of(device, dtype, 2, 5, rows, width=16, heads=2, count=collapsed(2, rows), p=0.3))


@pytest.mark.parametrize("tiles", ["hopper", "ampere"], indirect=True)
def test_dropout_without_row_counts(device: torch.device) -> None:
    """Drawn inside the kernels, and on A100 ahead of them."""
    check(Problem.of(device, torch.float32, 1, 5, 40, width=16, p=0.3), maps=False)


def test_an_empty_memory_gives_zeros(device: torch.device) -> None:
    problem = Problem.of(device, torch.float32, 2, 3, 9, count=torch.tensor([[1] * 9, [0] * 9]), p=0.3)
    ours = problem.ours()
    for name in ("out", "maps", "q"):
        assert bool((ours[name][1] == 0).all()), name
        assert bool((ours[name][0] != 0).any()), name
    for name in ("k", "v"):
        assert bool((ours[name][1] == 1).all()), name


# 577 rows need three heads' width of columns to be told apart
@pytest.mark.parametrize(("rows", "counted"), [(9, True), (98, False), (98, True), (197, False), (577, True)])
def test_masks_are_the_references_bit_for_bit(device: torch.device, rows: int, counted: bool) -> None:
    """Equal scores and the identity for values: the output is the multipliers, each with the weight of its row."""
    heads, queries, width = 2, 3, 256
    count = collapsed(1, rows) if counted else None
    problem = Problem.of(device, torch.float32, 1, queries, rows, width=width, heads=heads, count=count, p=0.4)
    problem.q.zero_()
    expected = problem.multipliers()
    n = torch.ones(1, rows, device=device) if problem.count is None else problem.count.float()
    weight = (n / n.sum())[:, None, None]
    for first in range(0, rows, width):
        part = min(width, rows - first)
        problem.kv[:, :, 1, 1] = 0.0
        for h in range(heads):
            problem.kv[0, first : first + part, 1, 1, h * width : h * width + part] = torch.eye(part, device=device)
        out = attention_forward(
            problem.q, problem.k, problem.v, heads=heads, scale=problem.scale, count=problem.count,
            dropout=problem.dropout(),
        )  # fmt: skip
        found = out.view(1, queries, heads, width).transpose(1, 2)[..., :part].double()
        wanted = (expected * weight)[..., first : first + part]
        assert torch.equal(found == 0, wanted == 0)
        # neighbouring counts of kept lanes differ by 1/150 and more
        assert torch.allclose(found, wanted, rtol=1e-5, atol=0.0)


def test_one_q_for_all_memories(device: torch.device) -> None:
    problem = Problem.of(device, torch.float32, 3, 5, 9, shared=True, p=0.2)
    assert problem.q.shape[0] == 1
    check(problem)
    repeated = Problem(problem.q.expand_as(problem.do), problem.kv, problem.do, problem.heads, None, problem.p)
    for ours, theirs in zip(problem.ours().values(), repeated.ours().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [9, 260])
def test_a_query_does_not_depend_on_its_tile(device: torch.device, rows: int) -> None:
    """Bitwise: the first of 70 queries alone, and every run like the one before."""
    problem = Problem.of(device, torch.float32, 1, 70, rows, width=16, heads=1, p=0.2)
    ours = problem.ours(maps=False)
    again = problem.ours(maps=False)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    alone = Problem(problem.q[:, :3], problem.kv, problem.do[:, :3].contiguous(), problem.heads, None, problem.p)
    few = alone.ours(maps=False)
    assert torch.equal(few["out"], ours["out"][:, :3])
    assert torch.equal(few["q"], ours["q"][:, :3])


def test_nan_stays_with_its_query(device: torch.device) -> None:
    problem = Problem.of(device, torch.float32, 1, 5, 9)
    problem.q[0, 2, 3] = float("nan")
    out = attention_forward(problem.q, problem.k, problem.v, heads=2, scale=problem.scale)
    assert bool(out[0, 2, :32].isnan().all())
    assert not bool(out[0, [0, 1, 3, 4]].isnan().any())


def test_no_memories_and_no_queries(device: torch.device) -> None:
    for m, queries in ((0, 3), (2, 0)):
        problem = Problem.of(device, torch.float32, m, queries, 5)
        ours = problem.ours(maps=False)
        assert ours["out"].shape == (m, queries, 64)
        assert bool((ours["k"] == 1).all())


def test_gradients_of_queries_in_their_own_dtype(device: torch.device) -> None:
    problem = Problem.of(device, torch.float16, 1, 5, 9)
    lse = torch.empty(1, 2, 5, device=device)
    how = {"heads": 2, "scale": problem.scale}
    out = attention_forward(problem.q, problem.k, problem.v, **how, lse=lse)
    d_q, d_kv = torch.empty_like(problem.q), torch.zeros(problem.kv.shape, device=device)
    attention_backward(
        problem.do, problem.q, problem.k, problem.v, out, lse, **how, d_q=d_q, d_k=d_kv[:, :, 1, 0],
        d_v=d_kv[:, :, 1, 1],
    )  # fmt: skip
    assert torch.equal(d_q, problem.ours()["q"].half())


def test_errors_name_the_rule_and_the_values(device: torch.device) -> None:
    good = Problem.of(device, torch.float32, 1, 5, 9)
    q, k, v = good.q, good.k, good.v
    for bad, message in [
        ({"heads": 5}, r"multiple of 16, got D=64 and heads=5\. Use the torch backend"),
        ({"heads": 8}, r"multiple of 16, got D=64 and heads=8"),
        ({"v": v.half()}, r"share one of float32, bfloat16 and float16, got .*float16"),
        ({"q": q.double(), "k": k.double(), "v": v.double()}, r"share one of float32"),
        ({"v": v[:, :4]}, r"must agree, got \(1, 5, 64\), \(1, 9, 64\) and \(1, 4, 64\)"),
        ({"v": v.contiguous()}, r"equal strides and contiguous columns"),
        ({"q": q.transpose(1, 2).contiguous().transpose(1, 2)}, r"last dimension of q must be contiguous"),
    ]:
        with pytest.raises(ValueError, match=f"attention_forward: .*{message}"):
            attention_forward(**{"q": q, "k": k, "v": v, "heads": 2, "scale": 1.0, **bad})
