"""The loss of a global batch on several ranks is that of one process: value, every gradient, bytes on the wire."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sharded_program import CASES, HANDED, D, plain, plain_step

from carzero.ops.spec import DecoderSpec
from carzero.train.cost import StepCost, Tower
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


def test_a_step_under_ddp_has_the_gradients_of_one_process(ranks_found) -> None:
    """The whole model in torch's DistributedDataParallel, seven pairs on 1, 2 and 4 processes, float64."""
    _, found = ranks_found
    ours, truth = found["ddp"], plain_step()
    whole = torch.sqrt(sum(g.square().sum() for name, g in truth.items() if name != "loss"))
    assert float(whole) > 0.1
    for name, want in truth.items():
        error, size = float((ours[name] - want).norm()), float(want.norm())
        assert error <= 1e-12 * (size if size > 1e-9 * float(whole) else float(whole)), (name, error, size)
    # DDP gives a gradient of nothing to parameters that no output depends on
    for name in ours.keys() - truth.keys():
        assert not ours[name].any(), name


def test_only_global_vectors_travel(ranks_found) -> None:
    """What a rank hands over: its global vectors and their gradients, and three numbers a column."""
    world, found = ranks_found
    if world == 1:
        assert found["bytes"] == 0
        return
    tower = Tower(width=D, depth=1, ffn=40, tokens=1, weights=0)
    cost = StepCost(
        16, world, image=tower, text=tower, decoder=DecoderSpec(width=D), decoder_weights=0, element=4
    ).wire_bytes()  # fmt: skip
    own = 16 // world
    # written out once: two vectors of each own pair, gradients of all vectors, three numbers a column of each matrix
    assert cost["global vectors"] == 2 * own * D * 4
    assert cost["their gradients"] == 2 * 16 * D * 4
    assert cost["columns"] == 2 * 16 * 4 * 3
    assert found["bytes"] == cost["global vectors"] + cost["their gradients"] + cost["columns"]
    # a token tensor of one rank would be 50 rows of each of its images
    assert found["largest"] < own * 50 * D * 4


@pytest.mark.parametrize("case", [(False, None), (True, None), (True, 2)], ids=str)
def test_the_cost_model_counts_the_bytes_of_a_real_step(ranks_found, case: tuple) -> None:
    """Weights included, whole or spread: `docs/scaling.md` projects with these formulas."""
    world, found = ranks_found
    if world == 1:
        assert {found["steps"][False, None][k] for k in HANDED} == {0}
        return
    step = found["steps"][case]
    outside = step["all"] - step["blocks"] - step["decoder"]
    cost = StepCost(
        8, world, micro_batch=case[1], sharding="fsdp2" if case[0] else "none", decoder=DecoderSpec(width=32),
        image=Tower(32, 2, 64, 5, weights=step["blocks"] + outside, outside=outside), text=Tower(32, 2, 64, 5, 0),
        decoder_weights=step["decoder"], element=4,
    ).wire_bytes()  # fmt: skip
    # the signals are the loop's, not the step's
    counted, formula = sum(step[kind] for kind in HANDED), sum(cost.values()) - 16
    if case == (False, None):
        # weights that are not trained have no gradient
        assert counted == formula - 4 * (step["all"] - step["trained"])
    else:
        # FSDP2 pads odd shapes, and gathers some blocks once more between the parts of a batch
        assert counted == pytest.approx(formula, rel=0.07)


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
