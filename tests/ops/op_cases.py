"""Inputs of the op's tests, ways to run it, and errors by name."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from published_decoder import PublishedDecoder
from torch import Tensor

from carzero.ops import (
    DecoderSpec,
    DecoderWeights,
    PackedWeights,
    pair_attention,
    pair_logits,
    pair_simr,
    prepared,
    tiled,
)
from carzero.ops.backends import interpreted
from carzero.ops.spec import parameter_names

#: Where the op runs; inputs and results of the tests stay on the CPU. benchmarks/gpu_suite.py sets it to cuda.
DEVICE = torch.device(os.environ.get("CARZERO_TEST_DEVICE", "cpu"))

#: Small, with every part: four heads of width 16, two layers, an MLP head.
SPEC = DecoderSpec(width=64, layers=2, heads=4, ffn=96, head_hidden=(48, 32, 16))
LINEAR = replace(SPEC, head="linear")


@dataclass(frozen=True)
class Runner:
    """A backend, and the paths inside it that are chosen by size or machine otherwise."""

    name: str
    backend: str
    recompute: str = "full"
    absorb: bool | None = None
    sixteen_bit: bool = False

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that it is tested in."""
        if self.sixteen_bit:
            return torch.bfloat16, torch.float16
        if interpreted(self.backend, DEVICE):
            # Triton's interpreter multiplies the bit patterns of bfloat16
            return torch.float32, torch.float16
        return torch.float32, torch.bfloat16, torch.float16

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.absorb is not None:
                module = importlib.import_module("carzero.ops.fused") if self.backend == "triton" else tiled
                patch.setattr(module, "absorption_pays", lambda *_: (self.absorb, "forced"))
            if self.sixteen_bit:
                patch.setattr(prepared, "gemm_dtype", lambda dtype, _: (dtype, "forced"))
            yield


RUNNERS = (
    Runner("reference", "reference"),
    Runner("torch", "torch", absorb=False),
    Runner("torch-layer", "torch", recompute="layer", absorb=False),
    Runner("torch-none", "torch", recompute="none"),
    Runner("torch-absorbed", "torch", absorb=True),
    Runner("torch-16-bit", "torch", sixteen_bit=True),
    Runner("cpp", "cpp"),
    Runner("triton", "triton", absorb=False),
    Runner("triton-none", "triton", recompute="none"),
    Runner("triton-absorbed", "triton", absorb=True),
)
if DEVICE.type != "cpu":
    RUNNERS = tuple(r for r in RUNNERS if r.backend != "cpp" and not r.sixteen_bit)


@dataclass(frozen=True)
class Case:
    """Leaf tensors and options of one call."""

    memory: Tensor
    queries: Tensor
    weights: DecoderWeights
    options: dict[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> Case:
        return replace(self, options={**self.options, **options})

    def leaves(self) -> list[Tensor]:
        return [self.memory, self.queries, *self.weights.flat()]

    def to(self, dtype: torch.dtype) -> Case:
        """Inputs and weights as fresh leaves of one dtype."""
        memory, queries = (t.detach().to(dtype).requires_grad_() for t in (self.memory, self.queries))
        weights = self.weights.map(lambda t: t.detach().to(dtype).requires_grad_())
        return Case(memory, queries, weights, self.options)


def make_case(
    memories: int,
    queries: int,
    rows: int,
    dtype: torch.dtype = torch.float32,
    *,
    spec: DecoderSpec = SPEC,
    pad_rows: int = 0,
    weight_dtype: torch.dtype | None = None,
    draw: int = 0,
    clear: bool = False,
    **options: Any,
) -> Case:
    """Random leaves; the last `pad_rows` rows of every memory are zeros, as the published model pads texts.

    Weights are float32 masters for 16-bit inputs, and large enough for every part to matter. They are `steady` for
    16-bit inputs, and where `clear`.
    """
    generator = torch.Generator().manual_seed(draw)
    memory = torch.randn(memories, rows, spec.width, generator=generator, dtype=torch.float64)
    memory[:, rows - pad_rows :] = 0
    q = torch.randn(queries, spec.width, generator=generator, dtype=torch.float64)
    if weight_dtype is None:
        weight_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weights = DecoderWeights.random(spec, seed=draw, std=1.5 * spec.width**-0.5, dtype=weight_dtype)
    if clear or dtype.itemsize == 2:
        weights = steady(weights)
    weights = weights.map(lambda t: t.requires_grad_())
    return Case(memory.to(dtype).requires_grad_(), q.to(dtype).requires_grad_(), weights, options)


def steady(weights: DecoderWeights) -> DecoderWeights:
    """Hidden elements far from 0, half of them above it, so that two roundings agree on every ReLU.

    Where they differ, single elements decide the error: a share f of flipped ones moves a gradient by about sqrt(f).
    """
    tensors = []
    last = f"head.{len(weights.spec.head_widths()) - 2}"
    for name, tensor in zip(parameter_names(weights.spec), weights.flat(), strict=True):
        hidden = "linear1" in name or (name.startswith("head.") and not name.startswith(last))
        if hidden and tensor.dim() == 2:
            tensor = tensor * 0.15
        elif hidden:
            tensor = tensor + torch.where(torch.arange(len(tensor)) % 2 == 0, 1.0, -1.0)
        tensors.append(tensor)
    return weights.from_flat(weights.spec, tensors)


def run(runner: Runner, case: Case, *, simr: bool = False, **options: Any) -> Tensor:
    """The op on a case."""
    function = pair_simr if simr else pair_logits
    merged = {"recompute": runner.recompute, **case.options, **options}
    return function(*on_device(case), backend=runner.backend, **moved(merged)).cpu()


def attention(runner: Runner, case: Case, **options: Any) -> Tensor:
    """`pair_attention` on a case, with these options alone."""
    return pair_attention(*on_device(case), backend=runner.backend, **moved(options)).cpu()


def on_device(case: Case) -> tuple[Any, Tensor, Any]:
    """Memory, queries and weights where the op runs; gradients come back to the case's leaves."""
    if DEVICE.type == "cpu":
        return case.memory, case.queries, case.weights
    weights: Any = case.weights
    if isinstance(weights, PackedWeights):
        weights = replace(weights, weights=weights.weights.to(DEVICE), blob=None)
    else:
        weights = weights.to(DEVICE)
    return case.memory.to(DEVICE), case.queries.to(DEVICE), weights


def moved(options: dict[str, Any]) -> dict[str, Any]:
    return {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in options.items()}


def values(runner: Runner, case: Case, *, simr: bool = False, cotangent: Tensor | None = None, **options: Any) -> dict:
    """Output and every gradient by name; see `gradients`."""
    with runner.forced():
        out = run(runner, case, simr=simr, **options)
        grads = torch.autograd.grad(
            out, case.leaves(), seeded_like(out) if cotangent is None else cotangent, allow_unused=simr
        )
    return {"out": out.detach(), **named(case, list(grads))}


def seeded_like(out: Tensor) -> Tensor:
    """A cotangent that depends on the shape alone."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def named(case: Case, grads: list[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by name, those of a memory's zero rows apart: LayerNorm at 0 makes them hundreds of times larger."""
    result: dict[str, Tensor] = {}
    memory = grads[0]
    assert memory is not None
    pad = (case.memory.detach() == 0).all(-1)
    result["memory.real_rows"] = memory[~pad]
    if pad.any():
        result["memory.pad_rows"] = memory[pad]
    for name, grad in zip(["queries", *parameter_names(case.weights.spec)], grads[1:], strict=True):
        if grad is not None:
            result[name] = grad
    return result


def published(case: Case, dtype: torch.dtype | None, *, simr: bool = False, cotangent: Tensor | None = None) -> dict:
    """The published module on the same numbers: in float64 (`dtype` None), or as users run it in a dtype.

    16-bit means float32 masters under autocast, float32 means float32.
    """
    wide = torch.float64 if dtype is None else torch.float32
    same = case.to(wide)
    module = PublishedDecoder(same.weights, wide)
    sixteen = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast("cpu", dtype=dtype if sixteen else torch.bfloat16, enabled=sixteen):
        out = module(same.memory, same.queries)[1 if simr else 0]
    seed = seeded_like(out) if cotangent is None else cotangent.to(out.dtype)
    leaves = [same.memory, same.queries, *module.in_order()]
    grads = torch.autograd.grad(out, leaves, seed, allow_unused=simr)
    return {"out": out.detach(), **named(same, list(grads))}


def error(ours: Tensor, truth: Tensor) -> float:
    """Relative L2 error; NaN stays NaN. Nothing is divided by a truth that is 0 throughout."""
    ours, truth = ours.detach().double(), truth.detach().double()
    difference = torch.linalg.vector_norm(ours - truth)
    size = torch.linalg.vector_norm(truth)
    return float(difference / size if size > 0 else difference)


def kind(name: str) -> str:
    return "forward" if name == "out" else "gradient"
