"""The rules engine, built once; reports that tests share."""

from __future__ import annotations

import pytest

from carzero.prompts.rules import RulesEngine


@pytest.fixture(scope="session")
def engine() -> RulesEngine:
    return RulesEngine()
