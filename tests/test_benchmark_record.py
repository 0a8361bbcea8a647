"""The tables of a record: every figure stands where it belongs, with its provenance."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def record_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", ROOT / "benchmarks" / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(contender: str, median: float, times_faster: float, mebibytes: int) -> dict:
    return {
        "test": f"test_pair_logits[{contender}]",
        "contender": contender,
        "kind": "images",
        "mode": "forward",
        "dtype": "bfloat16",
        "memories": 16,
        "shape": "M=16 Q=128 P=197 D=768 H=4 F=1024 L=4 mlp",
        "flops": 83e9,
        "gemm_flops_per_s": 2.9e12,
        "share_of_gemm_rate": 83e9 / median / 2.9e12,
        "times_faster": times_faster,
        "peak_extra_bytes": mebibytes * 2**20,
        "median": median,
        "spread": 0.05,
    }


@pytest.fixture
def record() -> dict:
    memory = [
        {"test": "test_memory_of_a_training_step", "contender": c, "memories": m, "peak_extra_bytes": b * 2**20}
        for c, m, b in (("published", 32, 700), ("published", 128, 2694), ("cpp", 32, 77), ("cpp", 128, 79))
    ]
    return {
        "command": "python benchmarks/record.py",
        "commit": "0123456789abcdef",
        "dirty": True,
        "date": "2026-01-01 00:00 UTC",
        "facts": {
            "cpu": {"model": "CPU", "threads": 2, "capability": "AVX2"},
            "versions": {"torch": "2.13", "python": "3.11"},
        },
        "rows": [
            timed("published", 0.101, 1.0, 900),
            timed("torch", 0.09, 1.12, 50),
            timed("cpp", 0.05, 2.02, 40),
            *memory,
        ],
    }


def test_tables_and_provenance(record_module: ModuleType, record: dict) -> None:
    text = record_module.render(record)
    assert "Commit `0123456789` with uncommitted changes, 2026-01-01 00:00 UTC; `python benchmarks/record.py`" in text
    assert "| cpp | 0.0500 | 5% | 2.02 | 0.57 | 40 |" in text
    assert "| published | 700 | 2694 |" in text
    assert "| cpp | 77 | 79 |" in text


def test_front_page_sets_the_fastest_backend_beside_published(record_module: ModuleType, record: dict) -> None:
    assert "| images, forward, bfloat16: `cpp` | 0.101 | 0.050 | 2.02 | 0.57 | 900 | 40 |" in record_module.summary(
        record
    )


def test_only_what_stands_between_the_markers_changes(
    record_module: ModuleType, record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [tmp_path / "README.md", tmp_path / "FRONT.md"]
    for page in pages:
        page.write_text(f"before\n{record_module.BEGIN}\nold\n{record_module.END}\nafter\n")
    file = tmp_path / "record.json"
    monkeypatch.setattr(record_module, "README", pages[0])
    monkeypatch.setattr(record_module, "FRONT", pages[1])
    monkeypatch.setattr(record_module, "HERE", tmp_path / "benchmarks")
    for command, front_changes in (("python benchmarks/record.py -k images", False), (record["command"], True)):
        file.write_text(json.dumps({**record, "command": command}))
        assert record_module.main(["--render", str(file)]) == 0
        texts = [page.read_text() for page in pages]
        assert all(t.startswith("before\n") and t.endswith("\nafter\n") for t in texts)
        assert "old" not in texts[0]
        assert ("old" not in texts[1]) == front_changes


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_pages_hold_the_markers_once(record_module: ModuleType, page: str) -> None:
    text = (ROOT / page).read_text()
    assert text.count(record_module.BEGIN) == 1
    assert text.count(record_module.END) == 1
