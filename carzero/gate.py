"""The correctness gate: every backend that runs here against the float64 reference, in a few seconds.

No speed is reported by this project unless it is green.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from carzero.ops import pair_logits
from carzero.ops.backends import BACKENDS, available, interpreted, supports
from carzero.ops.spec import DecoderSpec, DecoderWeights

#: Largest relative L2 error against float64, by dtype and quantity, and why.
#: The op's own tests hold tighter, dtype-relative bounds on many shapes; this gate finds what is broken on a machine: a
#: wrong kernel, mask or weight layout is off by 1e-2 and more in float32, and by 0.1 and more in bfloat16.
TOLERANCES: dict[tuple[torch.dtype, str], tuple[float, str]] = {
    (torch.float32, "logits"): (1e-5, "rounding of sums of some hundred products, about 1e-6"),
    (torch.float32, "gradients"): (1e-4, "the same through the backward; LayerNorm of near-zero rows amplifies it"),
    (torch.bfloat16, "logits"): (4e-2, "8 bits of mantissa in every matrix operand"),
    (torch.bfloat16, "gradients"): (
        0.15,
        "rounding flips the ReLU of 0.3 % of the units, and a flipped unit is off by all it has",
    ),
}

SPEC = DecoderSpec(width=64, layers=2, heads=4, ffn=96, head_hidden=(64, 48, 32))
MEMORIES, QUERIES, ROWS, REAL = 5, 7, 37, (3, 9, 20, 36, 1)


@dataclass(frozen=True)
class Result:
    """One comparison."""

    backend: str
    dtype: str
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # a NaN compares false, so it fails
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict}  {self.backend:<9} {self.dtype:<9} {self.what:<41} {self.error:7.1e} <= {self.tolerance:.0e}"


@dataclass(frozen=True)
class Gate:
    """All comparisons."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(r.passed for r in self.results)

    def rows(self) -> list[dict[str, Any]]:
        """The comparisons, JSON-ready."""
        return [{**asdict(r), "passed": r.passed} for r in self.results]

    def summary(self) -> str:
        """How many passed and failed."""
        failed = sum(not r.passed for r in self.results)
        return f"{len(self.results) - failed} passed, {failed} failed"

    def __str__(self) -> str:
        return "\n".join([*(str(r) for r in self.results), self.summary()])


@dataclass(frozen=True)
class _Problem:
    """Float64 inputs, padded and with equal rows collapsed."""

    memory: Tensor
    collapsed: Tensor
    row_count: Tensor
    queries: Tensor
    weights: DecoderWeights
    cotangent: Tensor


def _problem() -> _Problem:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    memory = draw(MEMORIES, ROWS, SPEC.width)
    collapsed = torch.zeros(MEMORIES, max(REAL) + 1, SPEC.width, dtype=torch.float64)
    row_count = torch.zeros(MEMORIES, max(REAL) + 1, dtype=torch.int32)
    for m, real in enumerate(REAL):
        memory[m, real:] = 0
        collapsed[m, :real] = memory[m, :real]
        row_count[m, :real] = 1
        row_count[m, real] = ROWS - real
    weights = DecoderWeights.random(SPEC, dtype=torch.float64, std=0.1)
    return _Problem(memory, collapsed, row_count, draw(QUERIES, SPEC.width), weights, draw(MEMORIES, QUERIES))


def _run(
    problem: _Problem, backend: str, dtype: torch.dtype, device: str, dropout_p: float, collapsed: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and gradients of memory, queries and parameters, as float64 on the CPU."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().clone().to(device=device, dtype=dtype).requires_grad_()

    memory = leaf(problem.collapsed if collapsed else problem.memory)
    queries = leaf(problem.queries)
    weights = problem.weights.map(leaf)
    logits = pair_logits(
        memory,
        queries,
        weights,
        row_count=problem.row_count.to(device) if collapsed else None,
        dropout_p=dropout_p,
        seed=2024 if dropout_p else None,
        backend=backend,
    )
    logits.backward(problem.cotangent.to(device=device, dtype=logits.dtype))
    parameters = torch.cat([_grad(t).flatten() for t in weights.flat()])
    gradients = {"d memory": _real_rows(_grad(memory)), "d queries": _grad(queries), "d weights": parameters}
    return logits.detach().double().cpu(), gradients


def _grad(t: Tensor) -> Tensor:
    assert t.grad is not None, "the op returned no gradient"
    return t.grad.double().cpu()


def _real_rows(gradient: Tensor) -> Tensor:
    """Rows that carry something: a pad row's gradient passes a LayerNorm at 0 and is hundreds of times larger."""
    return torch.cat([gradient[m, :real] for m, real in enumerate(REAL)])


def _error(ours: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.norm(ours - truth) / torch.linalg.norm(truth))


def runnable() -> list[tuple[str, str]]:
    """(backend, device) of everything that runs here, without the reference, which is the truth, and interpreters."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    names = [name for name in BACKENDS if name != "reference"]
    return [(b, d) for d in devices for b in names if available(b, d)[0] and not interpreted(b, d)]


def check(report: Callable[[Result], None] = lambda _: None) -> Gate:
    """Compare every available backend with `reference` in float64: forward and every gradient, with and without dropout
    and collapsed rows. Dropout at 0.3 with one wrong bit in a mask is off by far more than the tolerance.

    Args:
        report: called with each result as it comes.
    """
    results = []
    for result in _comparisons():
        report(result)
        results.append(result)
    return Gate(tuple(results))


def _comparisons() -> Iterator[Result]:
    problem = _problem()
    # the truth never collapses rows: that the collapsed form equals it is part of the claim
    truth = {p: _run(problem, "reference", torch.float64, "cpu", p, collapsed=False) for p in (0.0, 0.3)}
    for backend, device in runnable():
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            if not supports(backend, device=torch.device(device), dtype=dtype, spec=SPEC)[0]:
                continue
            for p, collapsed in ((0.0, False), (0.0, True), (0.3, False), (0.3, True)):
                logits, gradients = _run(problem, backend, dtype, device, p, collapsed)
                suffix = (", dropout masks" if p else "") + (", collapsed rows" if collapsed else "")
                yield Result(
                    backend, name, f"logits{suffix}", _error(logits, truth[p][0]), TOLERANCES[dtype, "logits"][0]
                )
                worst = max(_error(g, truth[p][1][key]) for key, g in gradients.items())
                yield Result(backend, name, f"gradients{suffix}", worst, TOLERANCES[dtype, "gradients"][0])
