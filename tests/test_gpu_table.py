"""The table of GEMM choices written from a record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_table  # noqa: E402

ROW = {
    "device": "sm_90", "bits": 16, "role": "norm", "k": 768, "n": 1024, "dropout": False, "by": "triton",
    "block": [128, 256, 64], "warps": 8, "stages": 3, "halves": False, "flatten": False, "drawn_once": False,
    "source": "estimate",
}  # fmt: skip
OTHERS = [{**ROW, "dropout": True}, {**ROW, "device": "sm_80"}, {**ROW, "k": 0, "n": 0}]


def contender(by: str, seconds: float, **tile) -> dict:
    fields = {name: ROW[name] for name in gpu_table.FIELDS}
    return {"seconds": seconds, "choice": {"by": by, **fields, **tile}}


def record(**contenders: dict) -> dict:
    found = {"role": "norm", "k": 768, "n": 1024, "dropout": False, "contenders": contenders}
    rows = {"GEMM and epilogue: norm 768x1024": found, "copy": {"copy": {"seconds": 1.0}}}
    return {
        "commit": "0123456789abcdef",
        "dry": False,
        "device": "NVIDIA H200",
        "stages": {"kernels": {"rows": rows}},
    }


def test_the_faster_side_and_the_fastest_tile_are_written() -> None:
    measured = record(
        torch={"seconds": 1e-4, "choice": None},
        slow=contender("triton", 3e-4),
        fast=contender("triton", 2.5e-4, block=[128, 128, 64], halves=True),
        cublas=contender("cublas", 2e-4),
        broken={"wrong": 0.5},
    )
    row, *others = gpu_table.updated([ROW, *OTHERS], measured)
    assert others == OTHERS
    assert row["by"] == "cublas"
    assert (row["block"], row["halves"]) == ([128, 128, 64], True)
    assert row["source"] == "01234567, NVIDIA H200: triton 2.500e-04 s, cublas 2.000e-04 s"


def test_a_tie_changes_no_choice() -> None:
    measured = record(triton=contender("triton", 2.02e-4), cublas=contender("cublas", 2e-4))
    assert gpu_table.updated([ROW], measured)[0]["by"] == "triton"
    assert gpu_table.updated([{**ROW, "by": "cublas"}], measured)[0]["by"] == "cublas"


def test_one_side_alone_proves_nothing() -> None:
    assert gpu_table.updated([ROW], record(cublas=contender("cublas", 2e-4))) == [ROW]


def test_a_dry_run_writes_no_row() -> None:
    with pytest.raises(SystemExit, match="the run was a dry one"):
        gpu_table.updated([ROW], {**record(), "dry": True})


def test_the_committed_table_is_as_it_would_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = gpu_table.TABLE.read_text()
    assert gpu_table.text(json.loads(committed)) == committed
    table, source = tmp_path / "table.json", tmp_path / "record.json"
    table.write_text(committed)
    source.write_text(json.dumps(record(triton=contender("triton", 1e-4), cublas=contender("cublas", 2e-4))))
    assert gpu_table.main([str(source), "--table", str(table), "--check"]) == 1
    assert table.read_text() == committed
    assert gpu_table.main([str(source), "--table", str(table)]) == 0
    assert "1 rows changed" in capsys.readouterr().out
    assert gpu_table.main([str(source), "--table", str(table), "--check"]) == 0
    assert table.read_text().count("01234567, NVIDIA H200") == 1
