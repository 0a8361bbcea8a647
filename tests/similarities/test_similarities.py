"""GLoRIA, MaxSim, VL-CABS and cosine against loops over single pairs, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from carzero.similarities import blocks, choose, cosine, max_sim, vl_cabs, word_region

BACKENDS = ("torch", "reference")
M, P, D, Q, T = 4, 9, 16, 3, 5


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def gloria(v: Tensor, w: Tensor, *, over_words: bool = True, mean: bool = False) -> Tensor:
    """One image ``[P, D]`` and one caption ``[T, D]``, in the order of GLoRIA's public code."""
    s = v @ w.T
    if over_words:
        s = torch.softmax(s, 1)
    a = torch.softmax(4.0 * s.T, 1)
    total = 0.0
    for t in range(len(w)):
        c = (a[t, :, None] * v).sum(0)
        total = total + torch.exp(5.0 * (c @ w[t]) / (c.norm() * w[t].norm()))
    return torch.log(total / len(w) if mean else total)


def filip(v: Tensor, w: Tensor) -> Tensor:
    return sum(max(unit(row) @ unit(word) for row in v) for word in w) / len(w)


def colbert(v: Tensor, w: Tensor) -> Tensor:
    return sum(max(row @ word for row in v) for word in w)


def radzero(v: Tensor, w: Tensor, temperature: Tensor) -> Tensor:
    """One image ``[P, D]`` and one text ``[1, D]``."""
    v, w = unit(v), unit(w[0])
    c = torch.softmax(v @ w / temperature, 0) @ v
    return unit(c) @ w


FAMILY: dict[str, tuple[Callable, Callable]] = {
    "gloria": (word_region, gloria),
    "gloria-paper": (
        lambda *a, **k: word_region(*a, over_words=False, **k),
        lambda v, w: gloria(v, w, over_words=False),
    ),
    "gloria-mean": (lambda *a, **k: word_region(*a, mean=True, **k), lambda v, w: gloria(v, w, mean=True)),
    "filip": (max_sim, filip),
    "colbert": (lambda *a, **k: max_sim(*a, normalise=False, mean=False, **k), colbert),
    "vl-cabs": (vl_cabs, radzero),
}


def inputs(name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Leaves: memory, queries, and VL-CABS's temperature."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(M, P, D, generator=generator, dtype=torch.float64)
    queries = torch.randn(Q, *(() if name == "vl-cabs" else (T,)), D, generator=generator, dtype=torch.float64)
    leaves = [memory, queries, *([torch.tensor(0.2, dtype=torch.float64)] if name == "vl-cabs" else [])]
    return [leaf.to(dtype).requires_grad_() for leaf in leaves]


def run(name: str, leaves: list[Tensor], **options) -> Tensor:
    memory, queries, *temperature = leaves
    if temperature:
        options["temperature"] = temperature[0]
    return FAMILY[name][0](memory, queries, **options)


def one_by_one(name: str, leaves: list[Tensor], rows: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
    """Each pair alone, its rows and tokens repeated as often as they count."""
    memory, queries, *temperature = leaves
    queries = queries if queries.dim() == 3 else queries.unsqueeze(1)
    result = []
    for m, v in enumerate(memory):
        for q, w in enumerate(queries):
            v_all = v if rows is None else v.repeat_interleave(rows[m], 0)
            w_all = w if tokens is None else w.repeat_interleave(tokens[q], 0)
            if len(v_all) and len(w_all):
                result.append(FAMILY[name][1](v_all, w_all, *temperature))
            else:
                result.append(memory.new_zeros(()))
    return torch.stack(result).view(len(memory), len(queries))


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad(out, leaves, cotangent.to(out))


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


def counts(name: str) -> dict[str, Tensor]:
    rows = torch.tensor([[1] * P, [1, 0, 2, 1, 0, 0, 3, 1, 1], [0] * P, [0, 1] + [0] * (P - 2)], dtype=torch.int32)
    tokens = torch.tensor([[1, 1, 1, 0, 0], [0, 2, 1, 0, 3], [0, 0, 0, 0, 0]], dtype=torch.int32)
    return {"row_count": rows} if name == "vl-cabs" else {"row_count": rows, "token_count": tokens}


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILY)
def test_results_and_gradients(name: str, backend: str, gram: bool, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "gram_pays", lambda *_: (gram, "forced"))
    leaves = inputs(name)
    truth = one_by_one(name, leaves)
    wanted = gradients(truth, leaves)
    # everything at once; tiles of one memory and one query; of several
    for tile in (None, 1, 2 * P * T):
        out = run(name, leaves, backend=backend, tile_scores=tile)
        assert relative(out, truth) < 1e-13
        for g, w in zip(gradients(out, leaves), wanted, strict=True):
            assert relative(g, w) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILY)
def test_counts_are_repeated_rows_and_absent_rows_may_hold_anything(name: str, backend: str) -> None:
    leaves, count = inputs(name), counts(name)
    truth = one_by_one(name, leaves, *count.values())
    wanted = gradients(truth, leaves)
    memory, queries, *more = (leaf.detach() for leaf in leaves)
    memory = memory.masked_fill((count["row_count"] == 0).unsqueeze(-1), torch.nan)
    if "token_count" in count:
        queries = queries.masked_fill((count["token_count"] == 0).unsqueeze(-1), torch.inf)
    spoilt = [t.requires_grad_() for t in (memory, queries, *more)]
    for tile in (None, 40):
        out = run(name, spoilt, backend=backend, tile_scores=tile, **count)
        assert relative(out, truth) < 1e-13
        assert not out[2].any()
        for g, w in zip(gradients(out, spoilt), wanted, strict=True):
            assert relative(g, w) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_share_the_gradient(backend: str) -> None:
    memory = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    queries = torch.tensor([[[2.0, 0.0]]])
    out = max_sim(memory, queries, normalise=False, mean=False, backend=backend)
    assert out.item() == 2.0
    (grad,) = torch.autograd.grad(out.sum(), memory)
    assert torch.equal(grad, torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILY)
def test_zero_rows_give_numbers(name: str, backend: str) -> None:
    leaves = inputs(name)
    zeros = [torch.zeros_like(t).requires_grad_() for t in leaves[:2]]
    out = run(name, [zeros[0], leaves[1], *leaves[2:]], backend=backend)
    grads = torch.autograd.grad(out.sum(), [zeros[0], leaves[1]])
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", FAMILY)
def test_sixteen_bits(name: str) -> None:
    """bfloat16 inputs lose no more than the reference on the same rounded inputs does in float32, and a little."""
    leaves = inputs(name)
    narrow = [t.detach().bfloat16().requires_grad_() for t in leaves[:2]] + [t.detach().float() for t in leaves[2:]]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    out, truth = run(name, narrow), run(name, exact, backend="reference")
    assert out.dtype == torch.bfloat16
    # results round to 2^-9; cosines of operands that were normalised and rounded again
    assert relative(out, truth) < 2e-2
    for g, w in zip(gradients(out, narrow[:2]), gradients(truth, exact[:2])):
        assert g.dtype == torch.bfloat16
        assert relative(g, w) < 6e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = run(name, [t.detach().float() for t in leaves])
    assert auto.dtype == torch.float32
    assert relative(auto, run(name, leaves)) < 2e-2


@pytest.mark.parametrize("name", ["gloria", "filip", "vl-cabs"])
def test_opcheck_and_compile(name: str) -> None:
    leaves, count = inputs(name, torch.float32), counts(name)
    kind = {"gloria": "word_region", "filip": "max_sim", "vl-cabs": "vl_cabs"}[name]
    constants = {"gloria": [4.0, 5.0, 1.0, 0.0], "filip": [1.0, 1.0], "vl-cabs": []}[name]
    memory, queries, *temperature = leaves
    arguments = (
        memory, queries.unsqueeze(1) if temperature else queries, count["row_count"], count.get("token_count"),
        temperature[0].detach().reshape(1).requires_grad_() if temperature else None, kind, constants, False, "torch",
        40,
    )  # fmt: skip
    found = torch.library.opcheck(torch.ops.carzero.similarity.default, arguments)
    assert set(found.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *t: run(name, list(t), **count), fullgraph=True, backend="aot_eager")
    out = compiled(*leaves)
    torch.testing.assert_close(out, run(name, leaves, **count))
    for g, w in zip(gradients(out, leaves), gradients(run(name, leaves, **count), leaves)):
        torch.testing.assert_close(g, w)


def test_only_inputs_are_kept() -> None:
    total = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        total += t.numel()
        return t

    memory, queries = torch.randn(8, 20, D, requires_grad=True), torch.randn(40, 10, D, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        word_region(memory, queries)
    assert total == memory.numel() + queries.numel()


def test_cosine_and_empty_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    memory, queries = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (3, 5))
    expected = [[float(m @ q / math.sqrt(float(m @ m) * float(q @ q))) for q in queries] for m in memory]
    torch.testing.assert_close(cosine(memory, queries), torch.tensor(expected, dtype=torch.float64))
    words = torch.randn(5, T, D)
    for shape in ((0, 5), (3, 0)):
        empty = max_sim(torch.randn(shape[0], P, D), words[: shape[1]])
        assert empty.shape == shape


def test_second_derivatives_are_refused_and_backends_are_named(monkeypatch) -> None:
    memory, queries = inputs("filip")
    (grad,) = torch.autograd.grad(max_sim(memory, queries).sum(), memory, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        torch.autograd.grad(grad.sum(), memory)
    call = {"kind": "max_sim", "device": "cpu", "dtype": torch.float64}
    assert choose("auto", **call)[0] == "torch"
    with pytest.raises(ValueError, match="kind must be one of word_region, max_sim, vl_cabs, cosine, got 'maxsim'"):
        choose("auto", **{**call, "kind": "maxsim"})
    monkeypatch.setenv("CARZERO_BACKEND", "reference")
    assert choose("auto", **call) == ("reference", "CARZERO_BACKEND=reference")
    monkeypatch.setenv("CARZERO_BACKEND", "cpp")
    with pytest.raises(RuntimeError, match="CARZERO_BACKEND=cpp was asked for and cannot run max_sim: runs the decod"):
        max_sim(memory, queries)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, w: max_sim(v[0], w), r"max_sim: memory must be \[M, P, D\] with P of 1 or more"),
        (lambda v, w: max_sim(v, w[:, 0]), r"max_sim: queries must be \[Q, T, D\] with T of 1 or more"),
        (lambda v, w: word_region(v, w[..., :8]), r"must have the same width D, got memory\.shape=\(4, 9, 16\) and"),
        (
            lambda v, w: word_region(v, w, row_count=torch.ones(4, 8, dtype=torch.int32)),
            r"row_count must be int32 of shape \(4, 9\), got torch\.int32 of shape \(4, 8\)",
        ),
        (lambda v, w: vl_cabs(v, w), r"vl_cabs: queries must be \[Q, D\], got"),
        (lambda v, w: vl_cabs(v, w[:, 0], temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda v, w: max_sim(v, w, tile_scores=0), "tile_scores must be a positive number of scores or None, got 0"),
        (lambda v, w: max_sim(v, w, backend="tourch"), "the nearest is 'torch'"),
        (lambda v, w: cosine(v, w), r"cosine: memory and queries must be \[M, D\] and \[Q, D\] of the same width"),
    ],
)
def test_errors_are_sentences(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*inputs("filip"))
    with pytest.raises(TypeError, match=r"must have the same dtype, got torch\.float64 and torch\.float32"):
        max_sim(inputs("filip")[0], inputs("filip")[1].float())
