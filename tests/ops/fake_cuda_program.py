"""Run by test_ops_fake_cuda.py in a process of its own: a fake CUDA tensor can abort a torch that has no CUDA.

Prints one JSON line: what each way of tracing the ops on fake CUDA tensors gave.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from carzero.ops import pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights

SPEC = DecoderSpec(width=64, layers=2, ffn=96, head_hidden=(64, 48, 32))
M, Q, P = 3, 5, 9


def fake(mode: FakeTensorMode, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    with mode:
        return torch.empty(shape, dtype=dtype, device="cuda")


def facts(*tensors: Tensor) -> list[list]:
    return [[list(t.shape), str(t.dtype), t.device.type, t.requires_grad] for t in tensors]


def arguments(
    backend: str, recompute: str, simr: bool, memory: Tensor, queries: Tensor, weights: DecoderWeights, seed: Tensor
) -> tuple:
    """Of the raw ops."""
    return (
        memory, queries, None, None, weights.norm_weight, weights.norm_bias, [t for l in weights.layers for t in l],
        [] if simr else list(weights.head), None, SPEC.heads, SPEC.eps, 0.1, seed, 0, 0, 0, False, False, backend,
        recompute, 0, 0, None, "",
    )  # fmt: skip


def main(backend: str, recompute: str) -> dict:
    """Shapes of forward and backward under a fake mode, nodes of make_fx, graphs of torch.compile."""
    mode = FakeTensorMode()
    weights = DecoderWeights.from_flat(SPEC, [fake(mode, shape) for shape in SPEC.parameter_shapes()])
    memory, queries = fake(mode, (M, P, SPEC.width)), fake(mode, (Q, SPEC.width))
    seed = fake(mode, (1,), torch.int64)
    found: dict = {}
    for name in ("pair_logits", "pair_simr"):

        def both(memory: Tensor, queries: Tensor) -> list[Tensor]:
            given = arguments(backend, recompute, name == "pair_simr", memory, queries, weights, seed)  # noqa: B023
            out, tape = getattr(torch.ops.carzero, name)(*given)  # noqa: B023
            backward = getattr(torch.ops.carzero, f"{name}_backward")  # noqa: B023
            return [out, *backward(torch.ones_like(out), tape, *given)]

        with mode:
            found[name] = facts(*both(memory, queries))
        graph = make_fx(both, tracing_mode="fake", _allow_non_fake_inputs=True)(memory, queries)
        found[f"{name}, make_fx"] = [str(node.target) for node in graph.graph.nodes if "carzero" in str(node.target)]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = weights.flat()

        def forward(self, memory: Tensor, queries: Tensor) -> Tensor:
            held = DecoderWeights.from_flat(SPEC, self.held)
            return pair_logits(memory, queries, held, dropout_p=0.1, seed=3, backend=backend, recompute=recompute).sin()

    graphs: list = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append([str(node.target) for node in graph.graph.nodes if "pair_logits" in str(node.target)])
        return graph.forward

    with mode, torch.no_grad():
        found["fullgraph"] = facts(torch.compile(Module(), fullgraph=True, backend=keep)(memory, queries))
    found["fullgraph, graphs"] = graphs
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
