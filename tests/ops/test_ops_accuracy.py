"""Three ways: float64 truth, the published module at a dtype under autocast, ours at that dtype."""

from __future__ import annotations

import functools

import pytest
import torch
from op_cases import LINEAR, SPEC, Case, Runner, error, kind, make_case, published, run, values
from tolerances import FACTOR, FLOOR, SAME

from carzero.ops import DecoderSpec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@functools.cache
def comparison(dtype: torch.dtype, simr: bool, **shape) -> tuple[Case, dict, dict]:
    """A case, the truth, and the published module's errors."""
    case = make_case(dtype=dtype, **shape)
    truth, theirs = (published(case, d, simr=simr) for d in (None, dtype))
    return case, truth, {name: error(theirs[name], truth[name]) for name in truth}


def assert_as_accurate_as_published(runner: Runner, dtype: torch.dtype, *, simr: bool = False, **shape) -> None:
    case, truth, theirs = comparison(dtype, simr, **shape)
    ours = values(runner, case, simr=simr)
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        allowed = FACTOR[kind(name)].value * theirs[name] + FLOOR[dtype, kind(name)].value
        assert error(value, truth[name]) <= allowed, f"{name}: {error(value, truth[name]):.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "pad_rows"), [(1, 0), (9, 3), (63, 0), (98, 80), (197, 0), (257, 1)])
def test_logits_and_every_gradient(runner: Runner, dtype: torch.dtype, rows: int, pad_rows: int) -> None:
    if dtype in runner.dtypes():
        assert_as_accurate_as_published(runner, dtype, memories=3, queries=5, rows=rows, pad_rows=pad_rows)


@pytest.mark.parametrize(
    "spec", [LINEAR, DecoderSpec(width=32, layers=1, heads=2, ffn=24, head="linear")], ids=["linear", "one-layer"]
)
def test_other_structures(runner: Runner, spec: DecoderSpec) -> None:
    assert_as_accurate_as_published(runner, runner.dtypes()[0], memories=2, queries=6, rows=11, spec=spec, pad_rows=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_simr_and_every_gradient(runner: Runner, dtype: torch.dtype) -> None:
    if dtype in runner.dtypes():
        assert_as_accurate_as_published(runner, dtype, simr=True, memories=3, queries=4, rows=21, pad_rows=5)


def test_published_size(runner: Runner) -> None:
    # where the CPU has no instruction for them, torch multiplies 16-bit operands at a tenth of the float32 rate
    if not runner.sixteen_bit:
        assert_as_accurate_as_published(
            runner, torch.float32, memories=2, queries=3, rows=197, spec=DecoderSpec()
        )  # fmt: skip


def test_long_memory(runner: Runner) -> None:
    assert_as_accurate_as_published(runner, runner.dtypes()[0], memories=2, queries=3, rows=1025)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("simr", [False, True], ids=["logits", "simr"])
def test_dropout_and_row_counts_against_the_float64_reference(runner: Runner, dtype: torch.dtype, simr: bool) -> None:
    # the published module draws other masks, so the oracle stands in for it
    if dtype not in runner.dtypes():
        return
    count = torch.ones(3, 13, dtype=torch.int32)
    count[0, 5], count[0, 6:] = 40, 0
    count[2, 12] = 3
    case = make_case(
        3,
        5,
        13,
        dtype,
        row_count=count,
        dropout_p=0.2,
        seed=2**41 + 11,
        direction=1,
        memory_offset=7,
        query_offset=70000,
    )
    truth = values(Runner("truth", "reference"), case.to(torch.float64), simr=simr)
    ours = values(runner, case, simr=simr)
    for name, value in ours.items():
        if name != "memory.pad_rows":
            assert error(value, truth[name]) <= SAME[dtype, kind(name)].value, name


def test_float64_torch_equals_reference() -> None:
    case = make_case(4, 5, 9, torch.float64, dropout_p=0.3, seed=5)
    truth = values(Runner("truth", "reference"), case)
    for ours in (Runner("torch", "torch", absorb=False), Runner("absorbed", "torch", absorb=True)):
        for name, value in values(ours, case).items():
            assert error(value, truth[name]) <= SAME[torch.float64, kind(name)].value, (ours.name, name)


def test_reference_gradients_by_finite_differences() -> None:
    spec = DecoderSpec(width=8, layers=2, heads=2, ffn=6, head_hidden=(5, 4, 3))
    count = torch.tensor([[1, 1, 3], [1, 0, 0]], dtype=torch.int32)
    case = make_case(2, 2, 3, torch.float64, spec=spec, row_count=count, dropout_p=0.25, seed=3)

    def function(memory, queries, *tensors):
        weights = case.weights.from_flat(spec, tensors)
        return run(Runner("reference", "reference"), Case(memory, queries, weights, case.options))

    assert torch.autograd.gradcheck(function, tuple(case.leaves()), eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)


def test_gradients_come_in_the_dtypes_of_their_inputs(runner: Runner) -> None:
    if torch.bfloat16 not in runner.dtypes():
        return
    case = make_case(2, 3, 5, torch.bfloat16)
    out = values(runner, case)
    assert {out["queries"].dtype, out["memory.real_rows"].dtype, out["out"].dtype} == {torch.bfloat16}
    assert {g.dtype for n, g in out.items() if n not in ("out", "queries") and "memory" not in n} == {torch.float32}


def test_the_key_bias_gets_zeros_not_none(runner: Runner) -> None:
    case = make_case(2, 3, 5, runner.dtypes()[0])
    d = SPEC.width
    grad = values(runner, case)["layers.1.in_proj_bias"]
    assert torch.equal(grad[d : 2 * d], torch.zeros(d))
    assert grad[:d].abs().min() > 0
    assert grad[2 * d :].abs().min() > 0
