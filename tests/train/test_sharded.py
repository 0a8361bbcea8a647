"""The loss of a global batch on several ranks is that of one process: value, every gradient, bytes on the wire."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sharded_program import CASES, D, plain

from carzero.train.ranks import Ranks
from carzero.train.sharded import sharded_contrastive_loss

PROGRAM = Path(__file__).with_name("sharded_program.py")


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks_found(request, tmp_path_factory) -> tuple[int, dict]:
    world, out = request.param, tmp_path_factory.mktemp("ranks") / "found.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    done = subprocess.run(
        [*command, str(PROGRAM), str(out)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return world, torch.load(out, weights_only=True)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_loss_and_gradients_equal_one_process(ranks_found, case: tuple, dtype: torch.dtype, tolerance: float) -> None:
    _, found = ranks_found
    ours = found["found"][str(dtype), case]
    truth = plain(case[0], case[1], torch.float64, case[2], case[3])
    assert ours.keys() == truth.keys()
    whole = torch.sqrt(sum(g.square().sum() for name, g in truth.items() if name != "loss"))
    assert abs(float(ours["loss"] - truth["loss"])) <= tolerance * float(truth["loss"])
    for name, want in truth.items():
        if name == "loss":
            continue
        error = float((ours[name].double() - want).norm())
        # float32 against the total norm; float64 against its own, unless the true gradient is nothing
        size = float(want.norm())
        against = size if dtype == torch.float64 and size > 1e-9 * float(whole) else float(whole)
        assert error <= tolerance * against, (name, error / against)


def test_only_global_vectors_travel(ranks_found) -> None:
    """What a rank hands over: its global vectors and their gradients, a log-sum-exp and a count a column."""
    world, found = ranks_found
    if world == 1:
        assert found["bytes"] == 0
        return
    batch, own = 16, 16 // world
    vectors = 2 * own * D * 4
    gradients = 2 * batch * D * 4
    columns = 2 * (batch * 4 + batch * 4)
    assert found["bytes"] == vectors + gradients + columns
    # a token tensor of one rank would be 50 rows of each of its images
    assert found["largest"] < own * 50 * D * 4


def test_shares_are_contiguous_and_nearly_equal() -> None:
    for total in (0, 1, 3, 7, 8, 64):
        for world in (1, 2, 3, 8):
            parts = [Ranks(r, world).part(total) for r in range(world)]
            assert [i for p in parts for i in range(p.start, p.stop)] == list(range(total))
            assert Ranks(0, world).sizes(total) == [p.stop - p.start for p in parts]
            assert max(Ranks(0, world).sizes(total)) - min(Ranks(0, world).sizes(total)) <= 1


def test_texts_must_be_as_many_for_each_image() -> None:
    with pytest.raises(ValueError, match="must be a multiple of total_images, got 5 and 2"):
        sharded_contrastive_loss(None, None, None, Ranks(), total_images=2, total_texts=5)  # type: ignore[arg-type]
