"""The native libraries ask torch for its stable C interface alone, so that one build serves torch 2.11 and later."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: An interpreter with another torch (2.11 or later), for the exhaustive tests.
OTHER = "CARZERO_OTHER_PYTHON"


def undefined(library: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    done = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def of_torch(names: set[str]) -> set[str]:
    """C++ symbols of torch's namespaces, and its C functions."""
    mangled = re.compile(r"_Z\w*?(2at|3c10|5torch|6caffe2)\w*")
    return {n for n in names if mangled.match(n) or n.startswith(("aoti_torch_", "torch_"))}


def test_the_operators_use_the_stable_interface_alone(native) -> None:
    asked = of_torch(undefined(Path(native.__file__).with_name("libcarzero_cpu.so")))
    assert "torch_call_dispatcher" in asked
    assert [n for n in asked if n.startswith("_Z")] == []


def test_the_python_module_knows_nothing_of_torch(native) -> None:
    names = undefined(Path(native.__file__))
    assert any("carzero3cpu" in n for n in names), "the kernels should be the library's, not a second copy"
    assert of_torch(names) == set()


RUN = """
import torch
from carzero.ops import DecoderSpec, DecoderWeights, available, pair_logits

able, why = available("cpp")
assert able, why
torch.manual_seed(0)
spec = DecoderSpec(width=64, layers=2, heads=2, ffn=96, head_hidden=(16, 16, 16))
weights = DecoderWeights.random(spec, std=0.2)
memory, queries = torch.randn(5, 7, 64), torch.randn(6, 64)


def run(backend, dtype, rounded):
    leaves = [t.to(rounded).to(dtype).requires_grad_() for t in (memory, queries)]
    out = pair_logits(*leaves, weights.to(rounded).to(dtype), backend=backend)
    return out.detach().double(), *(g.double() for g in torch.autograd.grad(out.sum(), leaves))


# processors with bfloat16 products round what they multiply, as the torch backend does on every one
for dtype, factor in ((torch.float32, 10.0), (torch.bfloat16, 2.0)):
    exact = run("reference", torch.float64, dtype)
    for ours, theirs, truth in zip(run("cpp", dtype, dtype), run("torch", dtype, dtype), exact, strict=True):
        error, allowed = (float((x - truth).norm() / truth.norm()) for x in (ours, theirs))
        assert error < factor * allowed, (dtype, error, allowed)
        assert dtype == torch.bfloat16 or error < 1e-5, error
        print(dtype, error)
try:
    torch.ops.carzero_native.pack_weights([torch.zeros(3)], 4, torch.float32)
except RuntimeError as error:
    assert str(error).startswith("carzero_native::pack_weights: params must be"), error
else:
    raise AssertionError("one parameter was accepted")
print(torch.__version__)
"""


def in_fresh_process(code: str, python: str = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [python, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_torchs_number_of_threads_governs(native) -> None:
    code = (
        "import os, torch\n"
        "from carzero.ops import DecoderSpec, DecoderWeights, pair_logits\n"
        "weights = DecoderWeights.random(DecoderSpec(width=64, layers=1, heads=2, ffn=96, head_hidden=(16, 16, 16)))\n"
        "memory, queries = torch.randn(40, 7, 64), torch.randn(40, 64)\n"
        "counts = []\n"
        "for threads in (1, 4):\n"
        "    torch.set_num_threads(threads)\n"
        "    with torch.no_grad():\n"
        "        pair_logits(memory, queries, weights, backend='cpp', tile_pairs=16)\n"
        "    counts.append(len(os.listdir('/proc/self/task')))\n"
        "print(counts[1] - counts[0])\n"
    )
    assert in_fresh_process(code, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1").split() == ["3"]


@pytest.mark.slow
def test_the_same_build_computes_on_another_torch(native) -> None:
    """Numbers, gradients and sentences are those of this torch, on the very same files."""
    if not os.environ.get(OTHER):
        pytest.skip(f"{OTHER} names no interpreter with another torch")
    ours, theirs = in_fresh_process(RUN), in_fresh_process(RUN, os.environ[OTHER])
    *numbers, version = ours.splitlines()
    *others, other = theirs.splitlines()
    assert other != version, f"{OTHER} has the same torch, {version}"
    assert numbers == others
