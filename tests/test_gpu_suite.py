"""The GPU suite without a GPU: a dry run through all stages, and how its record is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_stages import tables  # noqa: E402
from gpu_stages.suite import Suite  # noqa: E402
from gpu_stages.timing import take_turns  # noqa: E402


def suite(folder: Path, **options) -> Suite:
    made = Suite(folder / "r.json", {"stages": {}}, torch.device("cpu"), dry=False, limit=100.0)
    for name, value in options.items():
        setattr(made, name, value)
    made.begin("op")
    return made


def test_a_dry_run_goes_through_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/gpu_suite.py"), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    path = next(tmp_path.glob("gpu-*-dry.json"))
    record = json.loads(path.read_text())
    rows = {stage: found["rows"] for stage, found in record["stages"].items()}
    assert list(rows) == ["gate", "kernels", "op", "step", "zeroshot"]
    assert rows["gate"]["quick gate"]["passed"]
    assert rows["gate"]["op test matrix"]["passed"]
    case = rows["op"]["images, forward+backward, bfloat16, M=Q=4"]["contenders"]
    assert {"published", "torch"} <= case.keys()
    assert case["torch"]["times_faster"] == pytest.approx(case["published"]["seconds"] / case["torch"]["seconds"])
    # both score the same images: the published loop in autocast, ours through the text bank
    zeroshot = next(row for name, row in rows["zeroshot"].items() if name.endswith("torch"))
    assert zeroshot["relative_difference"] < 0.05
    assert "A dry run at toy sizes" in path.with_suffix(".md").read_text()


def test_without_a_device_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import gpu_suite

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_nothing_is_measured_on_a_red_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import gpu_suite

    def red(s: Suite) -> None:
        s.row("quick gate", lambda: {"passed": False})

    monkeypatch.setitem(gpu_suite.STAGES, "gate", red)
    monkeypatch.setitem(gpu_suite.STAGES, "kernels", lambda s: pytest.fail("measured on a red gate"))
    assert gpu_suite.main(["--dry-run", "--out", str(tmp_path)]) == 1
    assert "kernels is not measured" in capsys.readouterr().out


def test_a_resumed_stage_measures_what_is_missing(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(name: str) -> dict:
        calls.append(name)
        if name == "broken" and calls.count("broken") == 1:
            raise ValueError("no such kernel")
        return {"seconds": 1.0}

    first = suite(tmp_path)
    for name in ("a", "broken", "late"):
        first.row(name, lambda name=name: measure(name), seconds=1e9 if name == "late" else 1.0)
    assert calls == ["a", "broken"]
    assert first.errors == ["op: broken: ValueError: no such kernel"]
    assert "put_off" in first.rows["late"]
    second = suite(tmp_path, record=json.loads((tmp_path / "r.json").read_text()))
    for name in ("a", "broken", "late"):
        second.row(name, lambda name=name: measure(name))
    assert calls == ["a", "broken", "broken", "late"]
    assert second.errors == []


def test_the_gate_is_green_only_with_rows_that_passed(tmp_path: Path) -> None:
    made = suite(tmp_path)
    assert not made.gate_is_green
    for rows, green in [
        ({"x": {"passed": True}, "sanitizer": {"absent": "no such tool"}}, True),
        ({"x": {"passed": True}, "y": {"passed": False}}, False),
        ({"x": {"passed": True}, "y": {"error": "ValueError"}}, False),
        ({"x": {"passed": True}, "y": {"put_off": "1 s were left"}}, False),
    ]:
        made.record["stages"]["gate"] = {"rows": rows}
        assert made.gate_is_green == green, rows


def test_turns_count_calls_and_take_the_median() -> None:
    count = {"a": 0, "b": 0}

    def tick(name: str) -> None:
        count[name] += 1

    times = take_turns({name: lambda name=name: tick(name) for name in count}, torch.device("cpu"), rounds=3)
    for name in count:
        assert count[name] == 2 + 3 * times[name]["calls"]
        assert times[name]["seconds"] > 0


def test_tables_show_every_row() -> None:
    record = {
        "device": "some GPU", "commit": "abc", "dirty": False, "date": "today", "command": "run", "dry": False,
        "facts": {"versions": {"torch": "2", "triton": "3"}, "cuda": "13"},
        "stages": {"op": {"rows": {
            "case": {"shape": "M=4", "contenders": {"torch": {"seconds": 0.002, "peak_bytes": 2**21, "calls": 3}}},
            "failed": {"error": "ValueError: x"},
        }}},
    }  # fmt: skip
    text = tables.render(record)
    assert "| torch | 2.000 ms | 2 MiB |" in text
    assert "error ValueError: x" in text
