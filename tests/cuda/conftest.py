"""The emulated kernels, and inputs as the op lays them out."""

from __future__ import annotations

import ctypes

import emulated
import pytest


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return emulated.load()
