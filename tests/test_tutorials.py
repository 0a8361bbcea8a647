"""The tutorials of the documentation are run as they are read, like the README."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_readme import ROOT, SYBIL, demo_folder  # noqa: F401 (a fixture)


@pytest.mark.parametrize("name", ["classify", "train", "op", "evaluate"])
def test_tutorial_runs(name: str, demo_folder: Path) -> None:  # noqa: F811
    examples = list(SYBIL.parse(ROOT / "docs" / "tutorials" / f"{name}.md").examples())
    assert examples
    for example in examples:
        example.evaluate()
