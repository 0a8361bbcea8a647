"""Run by test_fused_max_sim.py in a process of its own: a fake CUDA tensor can abort a torch that has no CUDA.

Prints one JSON line: what tracing MaxSim by the Triton kernels on fake CUDA tensors gave.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from carzero.similarities import max_sim


def facts(t: Tensor) -> list:
    return [list(t.shape), str(t.dtype), t.device.type]


def both(memory: Tensor, queries: Tensor) -> list[Tensor]:
    """The raw ops, forward and backward."""
    given = memory, queries, None, None, None, "max_sim", [1.0, 1.0], False, "triton", 0
    out = torch.ops.carzero.similarity(*given)
    return [out, *torch.ops.carzero.similarity_backward(torch.ones_like(out), *given)]


def main() -> dict:
    """Shapes under a fake mode, nodes of make_fx."""
    mode = FakeTensorMode()
    with mode:
        memory, queries = (
            torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in ((3, 9, 16), (2, 5, 16))
        )
        found: dict = {"both": [facts(t) for t in both(memory, queries)]}
        found["public"] = facts(max_sim(memory, queries, backend="triton"))
    graph = make_fx(both, tracing_mode="fake", _allow_non_fake_inputs=True)(memory, queries)
    found["make_fx"] = [str(node.target) for node in graph.graph.nodes if "carzero" in str(node.target)]
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
