"""Similarities of tokens on two ranks, whose texts are not of one length, are those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from similarity_ranks_program import NAMES, run

from carzero.train.ranks import Ranks

PROGRAM = Path(__file__).with_name("similarity_ranks_program.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(PROGRAM),
        str(out),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_equal_one_process(two_ranks, name: str) -> None:
    truth = run(Ranks(), name)
    assert truth["text"].any()
    for key, want in truth.items():
        torch.testing.assert_close(two_ranks[name][key], want, rtol=1e-11, atol=1e-12)
