"""Random shapes and options against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import DEVICE, RUNNERS, Runner, error, kind, make_case, values
from tolerances import RANDOM

from carzero.ops import DecoderSpec, available
from carzero.ops.backends import interpreted

WIDE = {
    r.name: r for r in RUNNERS if not r.sixteen_bit and r.backend != "reference" and available(r.backend, DEVICE)[0]
}
# an interpreter takes seconds for a shape
SLOW = {name for name, r in WIDE.items() if interpreted(r.backend, DEVICE)}


@st.composite
def cases(draw):
    spec = DecoderSpec(
        width=(heads := draw(st.sampled_from([1, 2, 3]))) * 16,
        layers=draw(st.integers(1, 3)),
        heads=heads,
        ffn=draw(st.integers(1, 40)),
        head=draw(st.sampled_from(["mlp", "linear"])),
        head_hidden=draw(st.tuples(*[st.integers(1, 24)] * 3)),
    )
    memories, queries, rows = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    options: dict = {"tile_pairs": draw(st.sampled_from([None, 1, 5, 17]))}
    if draw(st.booleans()):
        options["row_count"] = torch.randint(0, 5, (memories, rows), generator=generator, dtype=torch.int32)
    if draw(st.booleans()):
        count = draw(st.integers(1, 20))
        sides = [torch.randint(0, n, (count,), generator=generator) for n in (memories, queries)]
        options["pairs"] = torch.stack(sides, 1)
    if draw(st.booleans()):
        options.update(
            dropout_p=draw(st.sampled_from([0.1, 0.5, 0.9])), seed=draw(st.integers(-(2**63), 2**63 - 1)),
            direction=draw(st.integers(0, 1)), memory_offset=draw(st.integers(0, 2**20)),
        )  # fmt: skip
    case = make_case(
        memories, queries, rows, torch.float32, spec=spec, draw=draw(st.integers(0, 999)), clear=True, **options
    )
    return case, draw(st.booleans())


def check(name: str, drawn: tuple) -> None:
    case, simr = drawn
    ours = values(WIDE[name], case, simr=simr)
    truth = values(Runner("truth", "reference"), case.to(torch.float64), simr=simr)
    rounded = values(Runner("rounded", "reference"), case, simr=simr)
    for key, value in ours.items():
        # LayerNorm of nearly equal numbers loses digits, and the float32 reference loses as many
        allowed = RANDOM[kind(key)].value + 3 * error(rounded[key], truth[key])
        size = float(torch.linalg.vector_norm(truth[key]))
        if size > 1e-9:
            assert error(value, truth[key]) <= allowed, key
        else:
            assert float(torch.linalg.vector_norm(value)) <= 1e-4, key


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in WIDE])
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=cases())
def test_random_shapes(name: str, drawn: tuple) -> None:
    check(name, drawn)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(WIDE.keys() - SLOW))
@settings(
    max_examples=10_000 // max(len(WIDE) - len(SLOW), 1), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(drawn=cases())
def test_ten_thousand_random_shapes(name: str, drawn: tuple) -> None:
    check(name, drawn)
