"""The native backend on every instruction set that runs here; those with bfloat16 operands may be emulated."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from op_cases import RUNNERS, Case, error, kind, make_case, published, values
from tolerances import FACTOR, FLOOR

from carzero.ops import pack_weights, pair_logits

CPP = next(r for r in RUNNERS if r.name == "cpp")


def runnable() -> list[tuple[str, bool]]:
    """Name, and whether it multiplies bfloat16 operands."""
    try:
        from carzero import _C
    except ImportError:
        return [("default", False)]
    return [(name, bf16) for name, runs, bf16 in _C.built_isas() if runs]


@pytest.fixture(params=runnable(), ids=lambda isa: isa[0])
def isa(request, need, monkeypatch) -> Iterator[tuple[str, bool]]:
    need("cpp")
    from carzero import _C

    monkeypatch.setenv("CARZERO_CPU_ISA", request.param[0])
    _C.reset_isa()
    assert _C.selected_isa()[0] == request.param[0]
    yield request.param
    monkeypatch.undo()
    _C.reset_isa()


@functools.cache
def comparison(dtype: torch.dtype, rows: int, pad_rows: int) -> tuple[Case, dict, dict]:
    case = make_case(3, 9, rows, dtype, pad_rows=pad_rows)
    truth = published(case, None)
    theirs = published(case, dtype)
    return case, truth, {name: error(theirs[name], truth[name]) for name in truth}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "pad_rows"), [(21, 5), (67, 0)])
def test_logits_and_every_gradient(isa, dtype: torch.dtype, rows: int, pad_rows: int) -> None:
    case, truth, theirs = comparison(dtype, rows, pad_rows)
    for name, value in values(CPP, case).items():
        allowed = FACTOR[kind(name)].value * theirs[name] + FLOOR[dtype, kind(name)].value
        assert error(value, truth[name]) <= allowed, f"{name}: {error(value, truth[name]):.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("absorb", ["0", "1"])
def test_masks_are_the_same_on_every_set(isa, absorb: str, monkeypatch) -> None:
    """A mask that differs in one element moves the logits by far more than the rounding of the operands."""
    monkeypatch.setenv("CARZERO_CPU_ABSORB", absorb)
    count = torch.ones(3, 21, dtype=torch.int32)
    count[0, 15], count[0, 16:] = 80, 0
    count[1, 4:] = 0
    for dtype, allowed in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        case = make_case(3, 9, 21, dtype, row_count=count, dropout_p=0.2, seed=5)
        with torch.no_grad():
            ours = pair_logits(case.memory, case.queries, case.weights, backend="cpp", **case.options)
            wide = case.to(torch.float64)
            truth = pair_logits(wide.memory, wide.queries, wide.weights, backend="reference", **case.options)
        assert error(ours, truth) < allowed


def test_threads_and_tiles_change_no_bit(isa) -> None:
    case = make_case(3, 29, 21, torch.bfloat16, dropout_p=0.1, seed=5)
    threads, results = torch.get_num_threads(), []
    try:
        for number, tile in ((1, None), (3, None), (2, 10)):
            torch.set_num_threads(number)
            with torch.no_grad():
                out = pair_logits(
                    case.memory, case.queries, case.weights, backend="cpp", tile_pairs=tile, **case.options
                )
            results.append(out)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_weights_packed_for_other_operands_are_refused(isa) -> None:
    case = make_case(2, 3, 5)
    if not isa[1]:
        pytest.skip(f"{isa[0]} packs every dtype alike")
    blob = pack_weights(case.weights, torch.bfloat16).blob
    params = [t.detach() for t in case.weights.flat()]
    with pytest.raises(RuntimeError, match="packed for another operand type"):
        torch.ops.carzero_native.pair_forward(
            case.memory.detach(),
            False,
            case.queries.detach(),
            None,
            None,
            params,
            blob,
            4,
            1e-5,
            0.0,
            0,
            0,
            0,
            0,
            0,
            False,
        )
