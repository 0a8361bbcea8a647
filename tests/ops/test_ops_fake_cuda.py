"""The ops on fake CUDA tensors: shapes, dtypes and devices without a GPU; make_fx and fullgraph see one node each."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from carzero.ops.spec import DecoderSpec

PROGRAM = Path(__file__).with_name("fake_cuda_program.py")
SPEC = DecoderSpec(width=64, layers=2, ffn=96, head_hidden=(64, 48, 32))
M, Q, P = 3, 5, 9


@cache
def found(backend: str, recompute: str) -> dict:
    """What the program prints."""
    command = [sys.executable, "-W", "ignore", str(PROGRAM), backend, recompute]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def cuda(*shape: int, dtype: str = "bfloat16") -> list:
    return [list(shape), f"torch.{dtype}", "cuda", False]


CASES = pytest.mark.parametrize(
    ("backend", "recompute"), [("torch", "full"), ("torch", "none"), ("triton", "full"), ("cuda", "full")]
)


@CASES
def test_forward_and_backward_propagate(backend: str, recompute: str) -> None:
    d = SPEC.width
    weights = [cuda(*shape) for shape in SPEC.parameter_shapes()]
    results = found(backend, recompute)
    assert results["pair_logits"] == [cuda(M, Q), cuda(M, P, d), cuda(Q, d), *weights]
    headless = weights[: len(weights) - len(SPEC.head_shapes())]
    assert results["pair_simr"] == [cuda(M, Q, d), cuda(M, P, d), cuda(Q, d), *headless]


@CASES
def test_make_fx_and_fullgraph_see_one_node(backend: str, recompute: str) -> None:
    results = found(backend, recompute)
    for name in ("pair_logits", "pair_simr"):
        nodes = [f"carzero.{name}.default", f"carzero.{name}_backward.default"]
        assert results[f"{name}, make_fx"] == nodes
    assert results["fullgraph"] == [cuda(M, Q)]
    (graph,) = results["fullgraph, graphs"]
    assert graph == ["carzero.pair_logits"]
