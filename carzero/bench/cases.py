"""What is measured: the inputs of each case, who runs it, and how many operations it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from carzero.bench.published import PublishedDecoder
from carzero.gate import runnable
from carzero.ops import pack_weights, pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights

#: Rows of a text memory in the published model: the sentence vector and 97 word pieces, padded with zero rows.
TEXT_ROWS = 98
#: Real rows of a text memory: a prompt of a few words up to a long sentence.
REAL_ROWS = (4, 30)

#: Name of the published module under torch.compile.
COMPILED = "published, torch.compile"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Args:
        kind: ``"images"`` (P = 197 rows) or ``"texts"`` (P = 98, of which 4 to 30 are real).
        mode: ``"forward"``, or ``"forward+backward"`` with dropout 0.1 and gradients of everything.
        dtype: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` meaning float32 parameters and inputs under autocast.
        memories, queries: M and Q.
        device: where it runs.
    """

    kind: Literal["images", "texts"] = "images"
    mode: Literal["forward", "forward+backward"] = "forward"
    dtype: str = "float32"
    memories: int = 16
    queries: int = 128
    spec: DecoderSpec = field(default_factory=DecoderSpec)
    device: str = "cpu"

    @property
    def dropout(self) -> float:
        return 0.1 if self.mode == "forward+backward" else 0.0

    @property
    def shape(self) -> str:
        """The shape in the project's letters."""
        s = self.spec
        rows = "197" if self.kind == "images" else f"{TEXT_ROWS} ({REAL_ROWS[0]}-{REAL_ROWS[1]} real)"
        return f"M={self.memories} Q={self.queries} P={rows} D={s.width} H={s.heads} F={s.ffn} L={s.layers} {s.head}"

    def real_rows(self) -> list[int]:
        """Rows of each memory that carry something; the rest is padding."""
        if self.kind == "images":
            return [197] * self.memories
        return torch.randint(*(REAL_ROWS[0], REAL_ROWS[1] + 1), (self.memories,), generator=_generator(1)).tolist()


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case: padded as the published model takes them, and with equal rows collapsed."""

    memory: Tensor
    collapsed: Tensor
    row_count: Tensor | None
    queries: Tensor
    weights: DecoderWeights
    cotangent: Tensor


def make_inputs(case: Case) -> Inputs:
    """Inputs drawn from a fixed seed, float32."""
    generator = _generator(0)
    d = case.spec.width
    rows = case.real_rows()
    total = 197 if case.kind == "images" else TEXT_ROWS
    memory = torch.randn(case.memories, total, d, generator=generator)
    queries = torch.randn(case.queries, d, generator=generator)
    cotangent = torch.randn(case.memories, case.queries, generator=generator)
    collapsed, row_count = memory, None
    if case.kind == "texts":
        collapsed = torch.zeros(case.memories, max(rows) + 1, d)
        row_count = torch.zeros(case.memories, max(rows) + 1, dtype=torch.int32)
        for m, n in enumerate(rows):
            memory[m, n:] = 0
            collapsed[m, :n] = memory[m, :n]
            row_count[m, :n] = 1
            row_count[m, n] = total - n
    weights = DecoderWeights.random(case.spec, device=case.device)
    row_count = None if row_count is None else row_count.to(case.device)
    # images: one tensor, not two copies of it
    moved = memory.to(case.device)
    collapsed = moved if case.kind == "images" else collapsed.to(case.device)
    return Inputs(moved, collapsed, row_count, queries.to(case.device), weights, cotangent.to(case.device))


def cpu_backends() -> list[str]:
    """Backends that run on this CPU and compete: the reference never does."""
    return [backend for backend, device in runnable() if device == "cpu"]


@dataclass(frozen=True)
class Contender:
    """Runs a case once when called; returns the logits and leaves gradients in `leaves`."""

    case: Case
    logits: Callable[[], Tensor]
    leaves: list[Tensor]
    cotangent: Tensor

    def __call__(self) -> Tensor:
        dtype = DTYPES[self.case.dtype]
        autocast = torch.autocast(
            self.case.device, torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32
        )
        if self.case.mode == "forward":
            with torch.no_grad(), autocast:
                return self.logits()
        for leaf in self.leaves:
            leaf.requires_grad_()
            leaf.grad = None
        with autocast:
            logits = self.logits()
        logits.backward(self.cotangent.to(logits.dtype))
        return logits.detach()


def contenders(
    case: Case,
    backends: list[str],
    *,
    compiled: bool | str | None = None,
    published: bool = True,
    recompute: str = "auto",
) -> dict[str, Contender]:
    """Who runs the case, by name: the published module (compiled as well, if asked), then each backend.

    A forward is what inference does: weights packed beforehand. A forward+backward is what a training step does:
    weights are float32 masters that changed since the last step, so packing them is part of it.

    Args:
        compiled: a mode of `torch.compile`, or True for its default.
        published: whether the published module takes part.
        recompute: of the backends.
    """
    inputs = make_inputs(case)
    train = case.mode == "forward+backward"
    calls: dict[str, Callable[..., Tensor]] = {}
    leaves: list[Tensor] = []
    if published:
        module = PublishedDecoder(inputs.weights, case.dropout).to(case.device).train(train)
        leaves = [inputs.memory, inputs.queries, *module.parameters()]
        calls["published"] = module
        if compiled:
            calls[COMPILED] = torch.compile(module, dynamic=False, mode=compiled if isinstance(compiled, str) else None)
    found = {
        name: Contender(case, partial(call, inputs.memory, inputs.queries), leaves, inputs.cotangent)
        for name, call in calls.items()
    }
    for name in backends:
        weights = inputs.weights if train else pack_weights(inputs.weights, DTYPES[case.dtype])
        call = partial(
            pair_logits, inputs.collapsed, inputs.queries, weights,
            row_count=inputs.row_count, dropout_p=case.dropout, seed=0 if train else None, backend=name,
            recompute=recompute, original_rows=inputs.memory.shape[1],
        )  # fmt: skip
        leaves = [inputs.collapsed, inputs.queries, *inputs.weights.flat()]
        found[name] = Contender(case, call, leaves, inputs.cotangent)
    return found


def forward_flops(case: Case) -> float:
    """Floating point operations of one forward that remain after the identities of docs/design.md; x 3 with backward.

    A multiplication and an addition are two operations; LayerNorm, softmax and elementwise work are not counted. With R
    the rows of a memory after equal ones are collapsed (real rows, and one for all padding), sums over memories::

        keys and values   R * D * 2LD * 2                                    once per memory row
        first layer's q   D * D * 2                                          once per query: the same for all pairs
        per pair          (L - 1) * 2DD   +  L * (2RD + 2RD)  +  L * 2DD     q, scores, a v, o
                          L * 4DF  +  head's 2 * (in * out)

    Or, with Wq and Wo absorbed into the memory's keys and values (cheaper where Q is large against R)::

        per memory row    (2L - 1) * 2DD                                     K' of layers 2..L, V' of all
        per pair          2RD + (L - 1) * 2HRD  +  L * 2HRD                  instead of q, scores, a v, o

    At D=768, Q=128, M=16 that is 83 GFLOP for image memories and about 38 for text memories.
    """
    s = case.spec
    d, f, heads, layers = s.width, s.ffn, s.heads, s.layers
    widths = s.head_widths()
    head = 2 * sum(i * o for i, o in pairwise(widths))
    q = case.queries
    total = 2.0 * q * d * d
    for real in case.real_rows():
        r = real if case.kind == "images" else real + 1
        shared = 4.0 * r * layers * d * d
        feed = q * (4.0 * layers * d * f + head)
        plain = q * (2.0 * (layers - 1) * d * d + 4.0 * layers * r * d + 2.0 * layers * d * d)
        absorbed = 2.0 * (2 * layers - 1) * r * d * d + q * 2.0 * r * d * (1 + heads * (2 * layers - 1))
        total += shared + feed + min(plain, absorbed)
    return total


def flops(case: Case) -> float:
    """Operations of the case: three times the forward's where there is a backward."""
    return forward_flops(case) * (3 if case.mode == "forward+backward" else 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
