"""Brightness does not give findings away, and drawn statistics lie where real ones do."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from carzero.data.phantom import FINDINGS, draw, labels_of, planned

COUNT, SIZE = 600, 128
REPOSITORY = Path(__file__).resolve().parents[2]
# 5th and 95th percentile of 781 real radiographs at 256 x 256, as printed in docs/phantom.md.
REAL = {
    "mean": (103.6, 175.1),
    "std": (40.7, 73.1),
    "p5": (0, 92),
    "p95": (183, 241),
    "edge": (2.43, 5.95),
    "mirror": (0.21, 0.92),
}


@pytest.fixture(scope="module")
def benchmark_module():
    """benchmarks/phantom_realism.py, which defines the statistics."""
    spec = importlib.util.spec_from_file_location("phantom_realism", REPOSITORY / "benchmarks" / "phantom_realism.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mean_and_spread() -> np.ndarray:
    """float [COUNT, 2]"""
    images = (draw(i, seed=1, size=SIZE).image for i in range(COUNT))
    return np.array([(image.mean(), image.std()) for image in images])


@pytest.mark.parametrize("name", FINDINGS)
def test_mean_and_spread_do_not_find_it(benchmark_module, mean_and_spread, name):
    labels = np.array([labels_of(planned(i, seed=1))[name] for i in range(COUNT)])
    assert benchmark_module.mean_and_spread_auroc(mean_and_spread, labels) < 0.75


def test_mean_and_spread_would_find_a_brightened_class(benchmark_module, mean_and_spread):
    labels = (np.arange(COUNT) % 4 == 0).astype(int)
    brighter = mean_and_spread + np.outer(labels, [30.0, 0.0])
    assert benchmark_module.mean_and_spread_auroc(brighter, labels) > 0.75


def test_statistics_lie_in_the_published_real_ranges(benchmark_module):
    drawn = np.array([benchmark_module.statistics(draw(i, seed=2, size=256).image) for i in range(120)])
    for column, (low, high) in enumerate(REAL.values()):
        values = drawn[:, column]
        assert low < np.median(values) < high
        # 80 % is asked of many; among 120 the standard error of a share is 0.037.
        assert np.mean((values >= low) & (values <= high)) > 0.80 - 2 * 0.037


@pytest.mark.data
def test_statistics_lie_in_the_ranges_of_the_real_images(benchmark_module):
    folder = Path(os.environ.get("CARZERO_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "nih_cxr14" / "images"
    files = sorted(folder.glob("*.jpg"))
    if not files:
        pytest.skip(f"no real radiographs in {folder}: set CARZERO_SHARED_DATA to the folder that holds nih_cxr14")
    real = np.array([benchmark_module.statistics(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE)) for f in files])
    drawn = np.array([benchmark_module.statistics(draw(i, size=256).image) for i in range(500)])
    rows, passed = benchmark_module.compare(real, drawn)
    assert passed, "\n".join(rows)
    np.testing.assert_allclose(np.percentile(real, [5, 95], axis=0).T, list(REAL.values()), rtol=0.02, atol=0.05)
