"""The whole op on the `cuda` backend's attention core, its kernels emulated, against the `torch` core and float64."""

from __future__ import annotations

from collections.abc import Iterator

import emulated_ops
import pytest
import torch
from emulated import SM90
from op_cases import steady
from tolerances import FACTOR, FLOOR
from torch import Tensor

from carzero.ops import DecoderSpec, DecoderWeights, prepared, reference, tiled, tiled_backward
from carzero.ops.attention_core import TORCH_CORE
from carzero.ops.call import Options, Params
from carzero.ops.cuda_core import CudaCore
from carzero.ops.tape import TapeSize

SPEC = DecoderSpec(width=64, layers=2, heads=4, ffn=96, head_hidden=(48, 32, 16))
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def registered(library) -> Iterator[emulated_ops.Registered]:
    found = emulated_ops.register(library)
    yield found
    found.libraries.clear()


@pytest.fixture
def calls(registered: emulated_ops.Registered) -> dict[str, int]:
    return registered.calls


@pytest.fixture(autouse=True)
def _sixteen_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """GEMM operands as on a GPU."""
    monkeypatch.setattr(prepared, "gemm_dtype", lambda dtype, _: (dtype, "forced"))


def case(
    dtype: torch.dtype, m: int, n: int, p: int, spec: DecoderSpec = SPEC, **options
) -> tuple[Tensor, Tensor, Params, Options]:
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(m, p, spec.width, generator=generator).to(dtype)
    queries = torch.randn(n, spec.width, generator=generator).to(dtype)
    weights = steady(DecoderWeights.random(spec, std=0.2))
    return memory, queries, Params.of(weights), Options(**options)


COUNT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 9, 0, 0, 0], [1, 0, 1, 1, 1, 2]], dtype=torch.int32)
OPTIONS = {
    "plain": {},
    "dropout": {"dropout_p": 0.2, "seed": torch.tensor([5]), "memory_offset": 7, "query_offset": 3, "direction": 1},
    "counts": {"row_count": COUNT},
    "counts, dropout": {"row_count": COUNT, "dropout_p": 0.2, "seed": torch.tensor([5])},
    "pairs, dropout": {
        "pairs": torch.tensor([[2, 1], [0, 3], [2, 0], [2, 1]]), "dropout_p": 0.2, "seed": torch.tensor([5]),
    },
    "tiles": {"tile_pairs": 4, "dropout_p": 0.1, "seed": torch.tensor([-9])},
}  # fmt: skip


def error(a: Tensor, b: Tensor) -> float:
    size = torch.linalg.vector_norm(b.double())
    return float(torch.linalg.vector_norm(a.double() - b.double()) / size) if size > 0 else float(a.double().norm())


def exact(memory: Tensor, queries: Tensor, params: Params, options: Options, grad: Tensor) -> tuple[Tensor, list]:
    """Logits and gradients of the reference in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (memory, queries, *params.flat())]
    wide = Params.from_flat(leaves[2:], len(params.layers), params.heads, params.eps)
    out = reference.pair_logits(leaves[0], leaves[1], wide, options)
    return out.detach(), list(torch.autograd.grad(out, leaves, grad.double().view_as(out), allow_unused=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_and_every_gradient(calls: dict[str, int], dtype: torch.dtype, options: dict) -> None:
    """As near to float64 as the op's tests ask; the plain core stands for the published module."""
    inputs = case(dtype, 3, 4, 6, **options)
    before = dict(calls)
    ours = tiled.pair_forward(*inputs, core=CudaCore())
    theirs = tiled.pair_forward(*inputs)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    truth, truth_grads = exact(*inputs, grad)
    factor, floor = FACTOR["forward"].value, FLOOR[dtype, "forward"].value
    assert error(ours, truth.flatten()) <= factor * error(theirs, truth.flatten()) + floor
    assert calls["attention_forward"] > before["attention_forward"]
    backward = tiled_backward.pair_backward(grad, *inputs, core=CudaCore())
    plain = tiled_backward.pair_backward(grad, *inputs)
    assert calls["attention_backward"] > before["attention_backward"]
    factor, floor = FACTOR["gradient"].value, FLOOR[dtype, "gradient"].value
    for a, b, t in zip(backward, plain, truth_grads, strict=True):
        if t is not None:
            assert error(a, t) <= factor * error(b, t) + floor


@pytest.mark.parametrize("p", [40, 105])
def test_hopper_s_kernels(
    calls: dict[str, int], registered: emulated_ops.Registered, monkeypatch: pytest.MonkeyPatch, p: int
) -> None:
    """Wide heads, on which the kernels of wgmma run: all keys in one block, and shared by two."""
    spec = DecoderSpec(width=144, layers=1, heads=1, ffn=32, head_hidden=(16,))
    count = torch.ones(2, p, dtype=torch.int32)
    count[0, 7], count[1, p - 3 :] = 5, 0
    inputs = case(torch.float16, 2, 33, p, spec, row_count=count, dropout_p=0.2, seed=torch.tensor([5]))
    grad = torch.randn(2 * 33, generator=torch.Generator().manual_seed(1))
    _, truth = exact(*inputs, grad)
    plain = tiled_backward.pair_backward(grad, *inputs)
    monkeypatch.setattr(registered, "device", SM90)
    before = dict(calls)
    ours = tiled_backward.pair_backward(grad, *inputs, core=CudaCore())
    attended = calls["attention_forward"] - before["attention_forward"]
    assert calls["wgmma"] - before["wgmma"] == attended + spec.layers
    factor, floor = FACTOR["gradient"].value, FLOOR[torch.float16, "gradient"].value
    for a, b, t in zip(ours, plain, truth, strict=True):
        if t is not None:
            assert error(a, t) <= factor * error(b, t) + floor


@pytest.mark.parametrize("recompute", ["layer", "none"])
def test_tapes_change_no_bit(calls: dict[str, int], recompute: str) -> None:
    memory, queries, params, options = case(torch.float16, 2, 3, 6, **OPTIONS["dropout"])
    size = TapeSize(2, 6, SPEC.width, SPEC.ffn, torch.float16, torch.device("cpu"), True)
    tape = size.views(torch.empty(size.bytes(recompute), dtype=torch.uint8), recompute)
    grad = torch.randn(6, generator=torch.Generator().manual_seed(1))
    out = tiled.pair_forward(memory, queries, params, options, tape, CudaCore())
    assert torch.equal(out, tiled.pair_forward(memory, queries, params, options, core=CudaCore()))
    kept = tiled_backward.pair_backward(grad, memory, queries, params, options, tape, CudaCore())
    again = tiled_backward.pair_backward(grad, memory, queries, params, options, core=CudaCore())
    for a, b in zip(kept, again, strict=True):
        assert error(a, b) < 1e-3


@pytest.mark.parametrize("options", [OPTIONS["counts"], OPTIONS["counts, dropout"]], ids=["", "dropout"])
def test_absorption(calls: dict[str, int], monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    inputs = case(torch.float16, 3, 4, 6, **options)
    plain = tiled.pair_forward(*inputs, core=CudaCore())
    monkeypatch.setattr(tiled, "absorption_pays", lambda *_: (True, "forced"))
    before = calls["attention_absorbed"]
    ours = tiled.pair_forward(*inputs, core=CudaCore())
    assert calls["attention_absorbed"] > before
    assert error(ours, plain) < 2e-3


def test_maps(calls: dict[str, int]) -> None:
    memory, queries, params, options = case(torch.float16, 3, 4, 6, row_count=COUNT)
    ours = tiled.pair_attention(memory, queries, params, options, 11, CudaCore())
    theirs = tiled.pair_attention(memory, queries, params, options, 11, TORCH_CORE)
    assert error(ours, theirs) < 1e-3
    assert (ours.sum(-1) - 1).abs().max() < 1e-4
