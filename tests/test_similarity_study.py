"""The statistics of benchmarks/similarity_study.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import similarity_study as study


def record(seeds: int = 3) -> dict:
    random = np.random.default_rng(0)
    runs = [
        {"seed": s, "similarity": name, "auroc": random.uniform(), "cpu_seconds": 10.0 + s, "parameters": 7}
        for s in range(seeds)
        for name in study.SIMILARITIES
    ]
    return {"runs": runs}


def test_paired_interval_is_students() -> None:
    differences = np.array([0.01, -0.02, 0.04, 0.03, 0.0])
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert study.interval(differences) == f"{differences.mean():+.3f} ({low:+.3f}, {high:+.3f})"


def test_table_pairs_within_whole_seeds() -> None:
    made = record()
    # a study that was stopped inside its third seed
    made["runs"] = made["runs"][:-2]
    lines = study.table(made).splitlines()
    assert "mean of 2 seeds" in lines[0]
    by = {(r["seed"], r["similarity"]): r["auroc"] for r in made["runs"]}
    gap = np.array([by[s, "gloria"] - by[s, "decoder"] for s in (0, 1)])
    assert study.interval(gap) in lines[3]
    assert lines[2].startswith("| decoder |")
    assert study.missing(made, 3) == [(2, name) for name in study.SIMILARITIES[-2:]]


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(SystemExit, match="at least two seeds"):
        study.table(record(1))
