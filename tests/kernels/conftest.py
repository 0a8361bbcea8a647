"""Triton kernels on the GPU, or through Triton's interpreter where there is none (tests/conftest.py chooses)."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton: not installed")

#: Where the kernels run. benchmarks/gpu_suite.py sets CARZERO_TEST_DEVICE to cuda.
DEVICE = torch.device(os.environ.get("CARZERO_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE
