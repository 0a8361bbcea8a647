"""What all tests share: loud skips, real data, poisoned allocations."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Triton reads it when a module with kernels is imported: without a GPU they run through its interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

#: Comma-separated names (cpp, triton, cuda, data, browser): a skip whose reason names one of them is a failure.
REQUIRED = tuple(name for name in os.environ.get("CARZERO_REQUIRE", "").split(",") if name)


def _required_by(reason: str) -> str | None:
    return next((name for name in REQUIRED if re.search(rf"\b{re.escape(name)}\b", reason)), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _unless_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _unless_required((yield))


def _unless_required(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        name = _required_by(reason)
        if name:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nThis may not be skipped: CARZERO_REQUIRE={','.join(REQUIRED)} names {name!r}."
    return report


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """``need("cpp")``: go on where that backend runs here; else skip with the reason, or fail under CARZERO_REQUIRE."""
    from carzero.ops import available

    def check(backend: str, device: str = "cpu") -> None:
        able, why = available(backend, device)
        if not able:
            pytest.skip(f"{backend}: {why}")

    return check


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real radiographs: CARZERO_SHARED_DATA, or shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CARZERO_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"data: no folder {folder}; set CARZERO_SHARED_DATA to the folder of real radiographs")
    return folder


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh floating tensors hold NaN and integer ones their largest value, so that an unwritten element shows."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1000).isnan().all(), "this torch does not fill uninitialised memory"
        yield
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Folder of a tiny model with random weights that knows a few words."""
    from carzero.models.carzero import CARZero
    from carzero.models.config import CARZeroConfig
    from carzero.models.tokenizer import word_tokenizer

    torch.manual_seed(0)
    tokenizer = word_tokenizer(["there is no left right effusion mass"])
    folder = tmp_path_factory.mktemp("weights")
    CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer).save_pretrained(folder)
    return folder
