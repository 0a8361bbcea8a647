"""Every way to run the op here."""

from __future__ import annotations

import pytest
from op_cases import DEVICE, RUNNERS, Runner

from carzero.ops.backends import interpreted

#: Triton's interpreter takes seconds for what a GPU does in a millisecond: these tests of it run every time, the other
#: ones of the matrix are slow.
INTERPRETED = {
    "test_logits_and_every_gradient[triton-9-3-torch.float16]",
    "test_logits_and_every_gradient[triton-197-0-torch.float32]",
    "test_logits_and_every_gradient[triton-absorbed-9-3-torch.float32]",
    "test_simr_and_every_gradient[triton-none-torch.float16]",
    "test_dropout_and_row_counts_against_the_float64_reference[triton-logits-torch.float32]",
    "test_other_structures[triton-linear]",
    # pairs, row counts, dropout and strides at once
    "test_strided_inputs_and_weights[triton]",
    "test_maps_at_the_original_rows[triton]",
    "test_no_pairs[triton]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        runner = item.callspec.params.get("runner") if hasattr(item, "callspec") else None
        if not isinstance(runner, Runner) or not interpreted(runner.backend, DEVICE):
            continue
        if item.name not in INTERPRETED:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.name)
def runner(request, need) -> Runner:
    need(request.param.backend, DEVICE.type)
    return request.param
