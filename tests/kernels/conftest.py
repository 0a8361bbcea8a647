"""Triton kernels on the GPU, or through Triton's interpreter where there is none (tests/conftest.py chooses)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="triton: not installed")

#: Where the kernels run. benchmarks/gpu_suite.py sets CARZERO_TEST_DEVICE to cuda.
DEVICE = torch.device(os.environ.get("CARZERO_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(params=["triton", "halves", "cublas"])
def multiplied(request) -> Iterator[str]:
    """Every GEMM of the test by one of `kernel_cases.CHOICES`; its name."""
    # after the skip above: they import the kernels
    from kernel_cases import CHOICES

    from carzero.kernels.table import forced

    with forced(CHOICES[request.param]):
        yield request.param
