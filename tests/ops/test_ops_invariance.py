"""Tile, shard, offset, list, order, packing and recompute change no mask, and results only by rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import Case, Runner, error, kind, make_case, run, seeded_like, values
from tolerances import SAME

from carzero.ops import pack_weights, pair_logits, pair_simr, project_memory, reference, tiled_attention
from carzero.ops.call import Options, Params
from carzero.ops.masks import PairMasks
from carzero.ops.rng import Site


def assert_same(ours: dict, theirs: dict, dtype: torch.dtype) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert error(value, theirs[name]) <= SAME[dtype, kind(name)].value, name


def dropout_case(runner: Runner, memories: int = 7, queries: int = 9, **options) -> Case:
    return make_case(memories, queries, 11, runner.dtypes()[0], dropout_p=0.3, seed=-5, **options)


@pytest.mark.parametrize("tile_pairs", [1, 4, 10, 64])
def test_tile(runner: Runner, tile_pairs: int) -> None:
    case = dropout_case(runner)
    assert_same(values(runner, case, tile_pairs=tile_pairs), values(runner, case), runner.dtypes()[0])


def test_shards_with_offsets(runner: Runner) -> None:
    case = dropout_case(runner, memory_offset=1000, query_offset=2**31 - 3)
    full = values(runner, case)
    cotangent = seeded_like(full["out"])
    out = torch.zeros_like(full["out"])
    sums: dict[str, torch.Tensor] = {}
    for rows in (slice(0, 3), slice(3, 7)):
        for columns in (slice(0, 8), slice(8, 9)):
            part = replace(case, memory=case.memory[rows], queries=case.queries[columns]).with_options(
                memory_offset=1000 + rows.start, query_offset=2**31 - 3 + columns.start
            )
            got = values(runner, part, cotangent=cotangent[rows, columns])
            out[rows, columns] = got.pop("out")
            for name in set(got) - {"memory.real_rows", "queries"}:
                sums[name] = sums.get(name, 0) + got[name]
    assert error(out, full["out"]) <= SAME[runner.dtypes()[0], "forward"].value
    for name, value in sums.items():
        assert error(value, full[name]) <= SAME[runner.dtypes()[0], "gradient"].value, name


def test_masks_are_equal_bit_for_bit_in_any_block() -> None:
    options = Options(dropout_p=0.37, seed=torch.tensor([99]), direction=1, memory_offset=5, query_offset=11)
    memory, query = torch.arange(6).unsqueeze(1), torch.arange(7).unsqueeze(0)
    count = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    whole = PairMasks.of(options, memory, query, 12, torch.float32)
    block = PairMasks.of(options, memory[2:5], query[:, 3:].expand(3, -1), 12, torch.float32)
    assert whole is not None
    assert block is not None
    for site, width in ((Site.AFTER_OUT_PROJECTION, 21), (Site.HEAD_HIDDEN_2, 8)):
        assert torch.equal(whole.features(site, 1, width)[2:5, 3:], block.features(site, 1, width))
    for c, part in ((None, None), (count, count[2:5])):
        assert torch.equal(whole.attention(1, 4, 9, c)[2:5, :, 3:], block.attention(1, 4, 9, part))


def test_pairs_equal_the_gathered_grid(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    case = dropout_case(runner)
    generator = torch.Generator().manual_seed(4)
    # uneven, unsorted, with repeats, one memory and one query without any
    pairs = torch.stack(
        (torch.randint(0, 6, (40,), generator=generator), torch.randint(1, 9, (40,), generator=generator)), 1
    )
    dense = values(runner, case)["out"]
    cotangent = seeded_like(pairs[:, 0].to(dtype))
    ours = values(runner, case, pairs=pairs, cotangent=cotangent)
    assert error(ours["out"], dense[pairs[:, 0], pairs[:, 1]]) <= SAME[dtype, "forward"].value
    spread = torch.zeros_like(dense).index_put_((pairs[:, 0], pairs[:, 1]), cotangent, accumulate=True)
    theirs = values(runner, case, cotangent=spread)
    theirs["out"] = theirs["out"][pairs[:, 0], pairs[:, 1]]
    assert_same(ours, theirs, dtype)
    assert_same(values(runner, case, pairs=pairs, cotangent=cotangent, tile_pairs=3), ours, dtype)


def test_simr_of_pairs_equals_the_gathered_grid(runner: Runner) -> None:
    case = dropout_case(runner)
    pairs = torch.tensor([[6, 8], [0, 0], [3, 2], [6, 8]])
    with runner.forced(), torch.no_grad():
        dense, listed = run(runner, case, simr=True), run(runner, case, simr=True, pairs=pairs)
    assert error(listed, dense[pairs[:, 0], pairs[:, 1]]) <= SAME[runner.dtypes()[0], "forward"].value


def test_every_seed_direction_and_offset_draws_other_masks(runner: Runner) -> None:
    case = dropout_case(runner)
    variants = [{}, {"seed": -6}, {"seed": -5 + 2**32}, {"direction": 1}, {"memory_offset": 1}, {"query_offset": 1}]
    with runner.forced(), torch.no_grad():
        outs = [run(runner, case, **variant) for variant in variants]
    for i in range(len(outs)):
        for j in range(i):
            assert error(outs[i], outs[j]) > 0.05, (variants[i], variants[j])


def test_a_seed_tensor_is_the_same_as_its_int(runner: Runner) -> None:
    case = dropout_case(runner)
    with runner.forced(), torch.no_grad():
        assert torch.equal(run(runner, case), run(runner, case, seed=torch.tensor([-5])))


def test_two_runs_are_equal_bit_for_bit(runner: Runner) -> None:
    case = dropout_case(runner)
    first, second = values(runner, case), values(runner, case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_projected_memory_equals_memory(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    count = torch.ones(7, 11, dtype=torch.int32)
    count[1, 4], count[1, 5:] = 9, 0
    case = dropout_case(runner, row_count=count)
    with runner.forced(), torch.no_grad():
        bank = project_memory(case.memory, case.weights, row_count=count)
        projected = replace(case, memory=bank).with_options(row_count=None)
        assert error(run(runner, projected), run(runner, case)) <= SAME[dtype, "forward"].value
        part = replace(case, memory=bank[2:4]).with_options(row_count=None, memory_offset=2)
        assert error(run(runner, part), run(runner, case)[2:4]) <= SAME[dtype, "forward"].value


def test_packed_weights_equal_weights(runner: Runner) -> None:
    dtype = runner.dtypes()[0]
    case = dropout_case(runner)
    with runner.forced(), torch.no_grad():
        for simr in (False, True):
            packed = replace(case, weights=pack_weights(case.weights, dtype))
            assert torch.equal(run(runner, packed, simr=simr), run(runner, case, simr=simr))


def test_packed_for_another_dtype_is_not_used(runner: Runner) -> None:
    case = dropout_case(runner)
    with runner.forced(), torch.no_grad():
        packed = replace(case, weights=pack_weights(case.weights, torch.bfloat16))
        assert torch.equal(run(runner, packed), run(runner, case))


@pytest.mark.parametrize(
    ("queries", "rows", "pays"),
    [(60, 49, False), (63, 49, True), (850, 197, False), (900, 197, True), (32, 15, True), (1, 9, False)],
)
def test_absorption_is_chosen_where_it_saves_operations(queries: int, rows: int, pays: bool) -> None:
    # four layers of the published size: break-even at Q = 61 for P = 49, at 855 for P = 197
    got, reason = tiled_attention.absorption_pays(queries, rows, 768, 4, 4)
    assert got is pays, reason


def test_projected_memory_has_no_gradient_but_queries_do(runner: Runner) -> None:
    case = dropout_case(runner)
    weights = case.weights.map(torch.Tensor.detach)
    bank = project_memory(case.memory, weights)
    if runner.backend == "cpp":
        with pytest.raises(RuntimeError, match="cannot run this call: has no backward through a projected memory"):
            pair_logits(bank, case.queries, weights, backend="cpp", **case.options)
        runner = replace(runner, backend="auto")
    plain = values(runner, case)
    with runner.forced():
        out = run(runner, replace(case, memory=bank, weights=weights))
        (grad,) = torch.autograd.grad(out, case.queries, seeded_like(out))
    assert error(grad, plain["queries"]) <= SAME[runner.dtypes()[0], "gradient"].value


def test_the_plain_function_of_the_reference_is_its_backend() -> None:
    case = make_case(3, 4, 5, torch.float64, dropout_p=0.2, seed=1)
    options = Options(dropout_p=0.2, seed=torch.tensor([1]))
    params = Params.of(case.weights)
    how = {"backend": "reference", **case.options}
    assert torch.equal(
        reference.pair_logits(case.memory, case.queries, params, options),
        pair_logits(case.memory, case.queries, case.weights, **how),
    )
    assert torch.equal(
        reference.pair_simr(case.memory, case.queries, params, options),
        pair_simr(case.memory, case.queries, case.weights, **how),
    )
