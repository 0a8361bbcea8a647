"""Empty sizes, strided and permuted inputs, slices of bigger buffers, poisoned allocations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import SPEC, Case, Runner, attention, error, kind, make_case, run, values
from tolerances import SAME

from carzero.ops import project_memory


@pytest.mark.parametrize(("memories", "queries"), [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("simr", [False, True], ids=["logits", "simr"])
def test_empty_sides_give_empty_results_and_zero_gradients(
    runner: Runner, memories: int, queries: int, simr: bool
) -> None:
    case = make_case(memories, queries, 5, runner.dtypes()[0])
    got = values(runner, case, simr=simr)
    assert got.pop("out").shape == ((memories, queries, SPEC.width) if simr else (memories, queries))
    assert not any(value.any() for value in got.values())


def test_no_pairs(runner: Runner) -> None:
    case = make_case(3, 4, 5, runner.dtypes()[0], pairs=torch.zeros(0, 2, dtype=torch.int64))
    got = values(runner, case)
    assert got.pop("out").shape == (0,)
    assert not any(value.any() for value in got.values())


def test_empty_maps_and_projections(runner: Runner) -> None:
    case = make_case(0, 4, 5, runner.dtypes()[0])
    with runner.forced():
        maps = attention(runner, case)
    assert maps.shape == (2, 0, 4, 5)
    assert project_memory(case.memory, case.weights).kv.shape == (0, 5, 2, 2, 64)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same numbers as every second element of a larger buffer along each axis, axes permuted."""
    wide = torch.full([2 * s + 1 for s in reversed(t.shape)], float("nan"), dtype=t.dtype)
    view = wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
    view.copy_(t.detach())
    return view.requires_grad_()


def test_strided_inputs_and_weights(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    count = torch.ones(4, 9, dtype=torch.int32)
    count[:, 7] = 3
    pairs = torch.tensor([[0, 4], [3, 1], [3, 2]])
    case = make_case(4, 5, 9, dtype, row_count=count, pairs=pairs, dropout_p=0.2, seed=3)
    options = {"row_count": count.T.contiguous().T, "pairs": pairs.T.contiguous().T}
    other = Case(strided(case.memory), strided(case.queries), case.weights.map(strided), {**case.options, **options})
    assert not any(t.is_contiguous() for t in other.leaves() if t.dim() > 1)
    ours, theirs = values(runner, other), values(runner, case)
    for name, value in ours.items():
        assert error(value, theirs[name]) <= SAME[dtype, kind(name)].value, name


def test_expanded_memory_and_cotangent(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    case = make_case(1, 5, 9, dtype)
    grown = replace(case, memory=case.memory.detach().expand(3, -1, -1).requires_grad_())
    ours = values(runner, grown, cotangent=torch.ones((), dtype=dtype).expand(3, 5))
    theirs = values(
        runner,
        replace(case, memory=grown.memory.detach().clone().requires_grad_()),
        cotangent=torch.ones(3, 5, dtype=dtype),
    )
    for name, value in ours.items():
        assert error(value, theirs[name]) <= SAME[dtype, kind(name)].value, name


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("simr", [False, True], ids=["logits", "simr"])
def test_every_element_is_written(runner: Runner, simr: bool) -> None:
    count = torch.ones(3, 10, dtype=torch.int32)
    count[0, 4], count[0, 5:], count[1] = 6, 0, 0
    # more pairs of one memory than fit a tile
    pairs = torch.tensor([[2, 1], [0, 3], [2, 0], [2, 2], [2, 3], [2, 1]])
    for options in ({}, {"row_count": count, "dropout_p": 0.2, "seed": 1}, {"pairs": pairs, "row_count": count}):
        case = make_case(3, 4, 10, runner.dtypes()[0], **options)
        for name, value in values(runner, case, simr=simr, tile_pairs=3).items():
            assert value.isfinite().all(), (name, options)
    with runner.forced(), torch.no_grad():
        maps = attention(runner, case, row_count=count, original_rows=13)
        kv = project_memory(case.memory, case.weights, row_count=count).kv
    assert maps.isfinite().all()
    assert kv.isfinite().all()


def test_outputs_are_contiguous(runner: Runner) -> None:
    case = make_case(3, 4, 5, runner.dtypes()[0])
    with runner.forced():
        assert run(runner, case).is_contiguous()
        assert run(runner, case, simr=True).is_contiguous()
