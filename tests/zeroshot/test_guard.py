"""The guard passes frontal radiographs, drawn and real, and flags what is none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn.datasets

from carzero.data.phantom import draw
from carzero.zeroshot.guard import UNDO, UNLIKE, FrontalGuard, statistics

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COUNT = 120
#: Not the seeds that the coefficients were fitted on.
SEED = 40


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def negatives():
    return module("guard_negatives")


@pytest.fixture(scope="module")
def frontal():
    return [draw(i, seed=SEED, size=192).image for i in range(COUNT)]


@pytest.fixture(scope="module")
def guard():
    return FrontalGuard.load()


def flagged(guard, images):
    return float(np.mean([not guard(image).frontal for image in images]))


def test_drawn_frontal_radiographs_pass(guard, frontal):
    assert flagged(guard, frontal) <= 0.02
    # a mirror image is not told from the image, and no one could
    assert flagged(guard, [image[:, ::-1] for image in frontal]) <= 0.02


def test_drawn_laterals_and_photographs_are_flagged(guard, negatives):
    assert flagged(guard, [negatives.lateral(i, seed=SEED, size=192) for i in range(COUNT)]) >= 0.95
    assert flagged(guard, [negatives.photograph(i, seed=SEED, size=192) for i in range(COUNT)]) >= 0.95


def test_what_was_done_wrongly_is_named(guard, negatives, frontal):
    assert len(negatives.TURNED) == len(UNDO)
    for wrong, looks in zip(negatives.TURNED, UNDO):
        verdicts = [guard(negatives.TURNED[wrong](image)) for image in frontal]
        assert np.mean([not v.frontal for v in verdicts]) >= 0.95
        assert np.mean([v.looks == looks for v in verdicts]) >= 0.95, wrong
    sentence = guard(255 - frontal[0]).sentence("a.png")
    assert sentence == "a.png looks inverted (bones dark): its scores may mean nothing."


def test_photographs_are_flagged(guard, negatives):
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photos = [cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in ("china.jpg", "flower.jpg")]
    pieces = [piece for photo in photos for piece in (photo, *negatives.patches(photo, 20))]
    assert flagged(guard, pieces) >= 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (64, 64), (65, 63), (2000, 1500)])
def test_any_size_and_flat_images(guard, shape):
    for value in (0, 128, 255):
        verdict = guard(np.full(shape, value, np.uint8))
        assert np.isfinite(verdict.score)
        assert not verdict.frontal
    noise = guard(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert (noise.frontal, noise.looks) == (False, UNLIKE)


def test_size_does_not_matter(guard):
    scores = [[guard(draw(i, seed=SEED, size=size).image).score for size in (128, 256, 512)] for i in range(12)]
    assert np.ptp(scores, axis=1).max() < 3, "of log-odds that lie some ten apart"
    wide = np.ascontiguousarray(np.repeat(draw(0, seed=SEED, size=256).image, 2, axis=1))
    assert guard(wide).frontal


def test_score_is_the_equation(guard, frontal):
    f = statistics(frontal[3])
    assert f.shape == guard.mean.shape == (42,)
    offset = f - guard.mean
    precision = guard.whiten @ guard.whiten.T
    distance = np.log(offset @ precision @ offset)
    expected = f @ guard.weights[:-1] + distance * guard.weights[-1] - guard.threshold
    assert guard.score(frontal[3]) == pytest.approx(expected, abs=1e-9)
    # the mean and covariance are those of radiographs: an inverse covariance is positive definite
    assert (np.linalg.eigvalsh(precision) > 0).all()


@pytest.mark.data
def test_real_radiographs(guard, negatives, shared_data):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        fit = module("fit_guard")
    finally:
        sys.path.remove(str(BENCHMARKS))
    images, patients = fit.read_real(shared_data)[fit.REAL]
    held_out = ~fit.split(patients)
    assert 350 < held_out.sum() < 430
    verdicts = np.array([guard(image).frontal for image in images])
    assert 1 - verdicts.mean() <= 0.05
    # patients that the coefficients were not fitted on
    assert 1 - verdicts[held_out].mean() <= 0.05
    some = [image for image, kept in zip(images, held_out) if kept][::4]
    for wrong, handle in negatives.TURNED.items():
        assert flagged(guard, [handle(image) for image in some]) >= 0.95, wrong
