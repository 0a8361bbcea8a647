"""Memory that the native backend takes beyond inputs, weights, results and gradients, measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys, torch
from carzero.ops import DecoderSpec, DecoderWeights, pair_logits

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

memories, queries, rows, width, ffn = map(int, sys.argv[1:])
spec = DecoderSpec(width=width, ffn=ffn)
weights = DecoderWeights.random(spec).map(lambda t: t.requires_grad_())
memory = torch.randn(memories, rows, width).requires_grad_()
query = torch.randn(queries, width).requires_grad_()
leaves = [memory, query, *weights.flat()]
# the code itself is no working memory: load it, and the thread pool, with a small call
pair_logits(memory[:1, :2], query[:1], weights, dropout_p=0.1, seed=1, backend="cpp").sum().backward()
for leaf in leaves:
    leaf.grad = torch.ones_like(leaf)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS:")
out = pair_logits(memory, query, weights, dropout_p=0.1, seed=1, backend="cpp")
forward = status("VmHWM:") - before
grads = torch.autograd.grad(out.sum(), leaves)
results = sum(g.numel() * 4 for g in grads) / 2**20
print(forward, status("VmHWM:") - before - results)
"""


def extra_mib(*sizes: int) -> tuple[float, float]:
    """Peak of the forward, and of forward and backward less the gradients, in MiB."""
    run = subprocess.run([sys.executable, "-c", MEASURE, *map(str, sizes)], capture_output=True, text=True, timeout=600)
    if run.returncode != 0 and "clear_refs" in run.stderr:
        pytest.skip("this system does not let a process reset its peak memory")
    assert run.returncode == 0, run.stderr
    forward, both = map(float, run.stdout.split())
    return forward, both


def test_flat_in_the_number_of_memories(need) -> None:
    need("cpp")
    # enough memories to fill the largest group and tile; 80 more would hold 123 MiB of keys and values
    few, many = (extra_mib(m, 12, 197, 256, 256) for m in (64, 144))
    assert max(many) - max(few) < 12, (few, many)


@pytest.mark.slow
@pytest.mark.parametrize("memories", [32, 128])
def test_published_size(need, memories: int) -> None:
    need("cpp")
    forward, both = extra_mib(memories, 128, 197, 768, 1024)
    assert max(forward, both) <= 135, (forward, both)
