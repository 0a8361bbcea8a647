"""Row counts: equal rows collapse exactly, masks mask, a memory without rows attends to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import RUNNERS, SPEC, Case, Runner, attention, error, kind, make_case, run, seeded_like, values
from tolerances import COLLAPSE, MAP_SUM, SAME

from carzero.ops import pair_attention, prepared, reference, tiled_attention
from carzero.ops.call import Params
from carzero.ops.spec import parameter_names

WIDE = [r for r in RUNNERS if r.backend != "cpp" and not r.sixteen_bit]


def collapsed(case: Case, lengths: list[int]) -> Case:
    """Zero rows from `lengths` on as one row each, in fewer columns."""
    total = case.memory.shape[1]
    rows = min(total, max(lengths) + 1)
    count = torch.zeros(len(lengths), rows, dtype=torch.int32)
    for m, n in enumerate(lengths):
        count[m, :n] = 1
        if n < total:
            count[m, n] = total - n
    memory = case.memory.detach()[:, :rows].clone().requires_grad_()
    return replace(case, memory=memory).with_options(row_count=count)


def padded_case(dtype: torch.dtype, lengths: list[int], total: int, **options) -> Case:
    case = make_case(len(lengths), 6, total, dtype, **options)
    memory = case.memory.detach().clone()
    for m, n in enumerate(lengths):
        memory[m, n:] = 0
    return replace(case, memory=memory.requires_grad_())


@pytest.mark.parametrize("dropout_p", [0.0, 0.35])
@pytest.mark.parametrize("runner", WIDE, ids=lambda r: r.name)
def test_collapse_is_exact_in_float64(runner: Runner, dropout_p: float) -> None:
    lengths = [4, 9, 1, 23, 24]
    options = {"dropout_p": dropout_p, "seed": 17, "direction": 1} if dropout_p else {}
    case = padded_case(torch.float64, lengths, 24, **options)
    ours, theirs = (memory_apart(runner, c) for c in (collapsed(case, lengths), case))
    # the row that stands for all has the sum of their gradients
    full, short = theirs.pop("memory"), ours.pop("memory")
    for m, n in enumerate(lengths):
        assert error(short[m, :n], full[m, :n]) <= COLLAPSE.value
        if n < 24:
            assert error(short[m, n], full[m, n:].sum(0)) <= COLLAPSE.value
            assert not short[m, n + 1 :].any()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert error(value, theirs[name]) <= COLLAPSE.value, name


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda r: r.name)
def test_naming_the_original_rows_changes_nothing(runner: Runner) -> None:
    lengths = [4, 9, 1, 23, 24]
    case = collapsed(padded_case(torch.float32, lengths, 24, dropout_p=0.35, seed=17), lengths)
    plain = values(runner, case)
    for rows in (24, 41):
        for name, value in values(runner, case.with_options(original_rows=rows)).items():
            assert torch.equal(value, plain[name]), (rows, name)


def memory_apart(runner: Runner, case: Case) -> dict[str, torch.Tensor]:
    """Output and gradients by name, the memory's whole."""
    with runner.forced():
        out = run(runner, case)
        grads = torch.autograd.grad(out, case.leaves(), seeded_like(out))
    return {"out": out.detach(), **dict(zip(["memory", "queries", *parameter_names(SPEC)], grads, strict=True))}


@pytest.mark.parametrize("dropout_p", [0.0, 0.35])
def test_collapse_in_the_runners_own_dtype(runner: Runner, dropout_p: float) -> None:
    dtype = runner.dtypes()[0]
    options = {"dropout_p": dropout_p, "seed": 17} if dropout_p else {}
    case = padded_case(dtype, [4, 9, 1], 24, **options)
    ours, theirs = (memory_apart(runner, c) for c in (collapsed(case, [4, 9, 1]), case))
    for name in set(ours) - {"memory"}:
        assert error(ours[name], theirs[name]) <= SAME[dtype, kind(name)].value, name


def test_count_0_equals_a_shorter_memory_whatever_the_row_holds(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    case = make_case(3, 4, 12, dtype)
    count = torch.ones(3, 12, dtype=torch.int32)
    count[:, 8:] = 0
    filled = case.memory.detach().clone()
    filled[:, 8:] = float("nan")
    masked = replace(case, memory=filled.requires_grad_()).with_options(row_count=count)
    short = replace(case, memory=case.memory.detach()[:, :8].clone().requires_grad_())
    ours, theirs = (memory_apart(runner, c) for c in (masked, short))
    assert not ours["memory"][:, 8:].any()
    ours["memory"] = ours["memory"][:, :8]
    for name, value in ours.items():
        assert error(value, theirs[name]) <= SAME[dtype, kind(name)].value, name


def test_an_absent_row_in_the_middle_is_never_read(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    case = make_case(2, 4, 9, dtype)
    count = torch.ones(2, 9, dtype=torch.int32)
    count[0, 3] = 0
    outs = []
    for junk in (0.0, float("inf"), float("nan")):
        memory = case.memory.detach().clone()
        memory[0, 3] = junk
        outs.append(memory_apart(runner, replace(case, memory=memory.requires_grad_()).with_options(row_count=count)))
    for other in outs[1:]:
        for name, value in other.items():
            assert torch.equal(value, outs[0][name]), name


def test_a_memory_without_rows_attends_to_nothing(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    count = torch.ones(3, 7, dtype=torch.int32)
    count[1] = 0
    case = make_case(3, 4, 7, dtype, row_count=count)
    ours = memory_apart(runner, case)
    assert all(value.isfinite().all() for value in ours.values())
    assert not ours["memory"][1].any()
    # nothing but the output bias is added by attention: the same as an output projection of zeros
    weights = case.weights.map(lambda t: t.detach().clone())
    for layer in weights.layers:
        layer[2].zero_()
    plain = values(runner, replace(case, weights=weights.map(lambda t: t.requires_grad_())))
    assert error(ours["out"][1], plain["out"][1]) <= SAME[dtype, "forward"].value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_log_of_a_row_count_is_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    # equal scores: 59 rows of value 0 and one of value 1 that stands for 59. In bfloat16 log 59 is off by 0.015.
    weights = prepared.prepare(Params.of(make_case(1, 1, 1).weights), dtype)._replace(gemm=dtype)
    kv = torch.zeros(1, 60, 2, 2, SPEC.width, dtype=dtype)
    kv[:, 59, :, 1] = 1
    count = torch.ones(1, 60, dtype=torch.int32)
    count[0, 59] = 59
    part = tiled_attention.TileMemory(kv, None, count, *reference.row_bias(count, torch.float32), None)
    o = tiled_attention.attend(torch.zeros(1, 3, SPEC.width, dtype=dtype), part, 0, weights, None)
    assert (o.float() - 0.5).abs().max() <= 5e-4


def test_maps_at_the_original_rows(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    lengths = [4, 9, 1, 24]
    case = padded_case(dtype, lengths, 24)
    short = collapsed(case, lengths)
    how = {"weights": case.weights, "queries": case.queries, "backend": runner.backend}
    with runner.forced():
        full = pair_attention(case.memory, **how)
        maps = pair_attention(short.memory, row_count=short.options["row_count"], **how)
        pairs = torch.tensor([[3, 5], [0, 0], [2, 1]])
        listed = pair_attention(short.memory, row_count=short.options["row_count"], pairs=pairs, **how)
    assert maps.shape == full.shape == (2, 4, 6, 24)
    assert maps.dtype == torch.float32
    assert error(maps, full) <= SAME[dtype, "forward"].value
    assert (maps.sum(-1) - 1).abs().max() <= MAP_SUM.value
    assert error(listed, maps[:, pairs[:, 0], pairs[:, 1]]) <= SAME[dtype, "forward"].value


def test_maps_equal_the_published_modules() -> None:
    from published_decoder import PublishedDecoder

    case = make_case(3, 4, 15, torch.float64)
    want = PublishedDecoder(case.weights, torch.float64)(case.memory, case.queries)[2]
    for backend in ("reference", "torch"):
        assert error(pair_attention(case.memory, case.queries, case.weights, backend=backend), want) <= 1e-13


def test_maps_of_a_memory_without_rows_are_zero(runner: Runner) -> None:
    count = torch.tensor([[1, 1, 3], [0, 0, 0]], dtype=torch.int32)
    case = make_case(2, 3, 3, runner.dtypes()[0])
    with runner.forced():
        maps = attention(runner, case, row_count=count, original_rows=7)
    assert maps.shape[-1] == 7
    assert not maps[:, 1].any()
    assert not maps[:, 0, :, 5:].any()
    assert (maps[:, 0].sum(-1) - 1).abs().max() <= MAP_SUM.value
