"""`carzero info`: facts, backends with reasons, and a gate that catches what is wrong."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

import carzero
from carzero import diagnostics, gate
from carzero.cli import main


def test_info_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"carzero {carzero.__version__}\n")
    assert f"torch {torch.__version__}" in printed
    for name in ("reference", "torch", "cpp", "triton"):
        assert f"\n  {name} " in printed


def test_json_holds_every_backend_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["reference"]["available"]
    assert found["backends"]["torch"]["available"]
    silent = [n for n, s in found["backends"].items() if not s["reason"]]
    assert silent == []
    assert found["native"]["built"] or not found["backends"]["cpp"]["available"]
    for choice in found["choices"]:
        assert found["backends"][choice["backend"]]["available"]
        assert choice["reason"]
    assert {(c["device"], c["dtype"]) for c in found["choices"]} >= {("cpu", "float32"), ("cpu", "bfloat16")}


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "_version", lambda name: None if name == "pydicom" else "1.0")
    found = diagnostics.extras()
    assert found["dicom"] == {"missing": ["pydicom"], "install": 'pip install "carzero[dicom]"'}
    assert found["dev"]["missing"] == []
    assert "missing pydicom; pip install" in diagnostics.text({**diagnostics.facts(), "extras": found})


def test_check_is_green_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    # of the processor: the wall clock of a machine that does other things says nothing
    start = time.process_time()
    assert main(["info", "--check", "--json"]) == 0
    assert time.process_time() - start < 20
    report = json.loads(capsys.readouterr().out)["check"]
    assert report["passed"]
    tested = {row["backend"] for row in report["rows"]}
    assert tested == {backend for backend, _ in gate.runnable()}
    whats = {row["what"] for row in report["rows"]}
    assert "gradients, dropout masks, collapsed rows" in whats
    assert len(whats) == 8


@pytest.mark.parametrize("site", ["logits", "weights", "mask"])
def test_check_turns_red_where_a_backend_is_wrong(
    site: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logit off by a thousandth of their size, one weight of a layer off, another seed: each is seen."""
    real = gate.pair_logits

    def wrong(memory, queries, weights, *, backend, seed, **options):
        if backend != "reference":
            if site == "weights":
                moved = [w if i != 5 else w * 1.05 for i, w in enumerate(weights.flat())]
                weights = type(weights).from_flat(weights.spec, moved)
            if site == "mask" and seed is not None:
                seed += 1
        logits = real(memory, queries, weights, backend=backend, seed=seed, **options)
        if backend != "reference" and site == "logits":
            logits = logits * 1.001
        return logits

    monkeypatch.setattr(gate, "pair_logits", wrong)
    monkeypatch.setattr(gate, "runnable", lambda: [("torch", "cpu")])
    assert main(["info", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  torch" in printed
    assert " failed in " in printed


def test_nan_fails() -> None:
    assert not gate.Result("cpp", "float32", "logits", math.nan, 1e-5).passed
    assert not gate.Gate(()).passed
