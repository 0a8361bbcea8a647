"""The native module, and the instruction sets of its build that this machine runs (test_isa.py names the others)."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest
import torch  # noqa: F401  the native module needs its libraries


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`isa`: each set of the build that runs here; `isa, operand`: with each operand type that it multiplies."""
    if "isa" not in metafunc.fixturenames:
        return
    try:
        from carzero import _C
    except ImportError:
        # the fixture `native` skips, or fails where the extension is required
        sets = [("default", True, False)]
    else:
        sets = [s for s in _C.built_isas() if s[1]]
    if "operand" in metafunc.fixturenames:
        pairs = [(name, operand) for name, _, bf16 in sets for operand in (("f32", "bf16") if bf16 else ("f32",))]
        metafunc.parametrize(("isa", "operand"), pairs)
    else:
        metafunc.parametrize("isa", [name for name, _, _ in sets])


@pytest.fixture(scope="session")
def native() -> ModuleType:
    if "cpp" in os.environ.get("CARZERO_REQUIRE", "").split(","):
        from carzero import _C

        return _C
    pytest.importorskip("carzero._C", reason="carzero._C is not built", exc_type=ImportError)
    return sys.modules["carzero._C"]
