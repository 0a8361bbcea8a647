"""Nothing is measured on a red correctness gate."""

from __future__ import annotations

import pytest

from carzero.gate import check


@pytest.fixture(scope="session", autouse=True)
def _gate() -> None:
    report = check()
    if not report.passed:
        pytest.exit(f"the correctness gate is red, so nothing is measured:\n{report}", returncode=1)
