"""Every way to run the op here."""

from __future__ import annotations

import pytest
from op_cases import DEVICE, RUNNERS, Runner


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.name)
def runner(request, need) -> Runner:
    need(request.param.backend, DEVICE.type)
    return request.param
