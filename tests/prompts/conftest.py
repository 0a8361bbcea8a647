"""The rules engine, built once; reports that tests share."""

from __future__ import annotations

import pytest

pytest.importorskip("spacy", reason="prompts: spaCy is not installed (pip install 'carzero[prompts]')")

from carzero.prompts.rules import RulesEngine


@pytest.fixture(scope="session")
def engine() -> RulesEngine:
    return RulesEngine()
