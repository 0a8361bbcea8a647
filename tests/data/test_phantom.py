"""Drawn radiographs: the same call gives the same picture; every finding lies where its side and box say."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from carzero.data.phantom import FINDINGS, Finding, Phantom, draw, labels_of, planned
from carzero.errors import UserError

SIZE = 128
CASES = [(name, severity) for name, kind in FINDINGS.items() for severity in kind.severities]


def _signature(index: int) -> tuple[bytes, tuple[Finding, ...], tuple[str, ...]]:
    phantom = draw(index, seed=5, size=64)
    return phantom.image.tobytes(), phantom.findings, phantom.report


def _difference(index: int, finding: Finding, size: int = SIZE) -> tuple[np.ndarray, Phantom]:
    """Change of the image that this finding makes in patient `index`, float [size, size]."""
    healthy = draw(index, size=size, findings=())
    ill = draw(index, size=size, findings=(finding,))
    return ill.image.astype(float) - healthy.image.astype(float), ill


def test_same_arguments_give_the_same_phantom_in_any_process_and_order():
    here = [_signature(i) for i in range(6)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(_signature, reversed(range(6))))
    assert here == there[::-1]
    assert len({image for image, _, _ in here}) == 6


def test_index_and_seed_change_patient_and_findings():
    pictures = {draw(i, seed=s, size=48, findings=()).image.tobytes() for i in range(5) for s in range(3)}
    assert len(pictures) == 15
    assert [planned(i, seed=0) for i in range(30)] != [planned(i, seed=1) for i in range(30)]


def test_explicit_planned_findings_draw_the_same_image():
    index = next(i for i in range(100) if len(planned(i)) >= 2)
    automatic = draw(index, size=SIZE)
    given = draw(index, size=SIZE, findings=planned(index)[::-1])
    np.testing.assert_array_equal(automatic.image, given.image)
    assert set(automatic.findings) == set(given.findings)


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_sizes_show_the_same_patient(size):
    import cv2

    large = draw(11, size=256).image
    image = draw(11, size=size).image
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    # Noise, burned-in text and the focal spot are set per size, anatomy is not.
    small = [cv2.resize(i, (32, 32), interpolation=cv2.INTER_AREA).ravel() for i in (image, large)]
    assert np.corrcoef(*small)[0, 1] > 0.98


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_box_holds_the_change_and_the_change_is_visible(name, severity):
    inside, contrast = [], []
    for index in range(4):
        side = ("left", "right")[index % 2] if FINDINGS[name].sided else None
        change, phantom = _difference(index, Finding(name, side, severity))
        x0, y0, x1, y1 = phantom.findings[0].box
        assert 0 <= x0 < x1 <= SIZE
        assert 0 <= y0 < y1 <= SIZE
        inside.append(np.abs(change[y0:y1, x0:x1]).sum() / np.abs(change).sum())
        contrast.append(np.sort(np.abs(change).ravel())[-60:].mean())
    # Blur and edge enhancement carry a few per cent of the change past the outline.
    assert min(inside) > 0.93
    # Sixty pixels of 128 x 128 are the size of a moderate nodule; noise of the film is 1-3 grey values.
    assert min(contrast) > (8 if severity in ("small", "mild") else 15)


@pytest.mark.parametrize("name", [n for n, kind in FINDINGS.items() if kind.sided])
def test_left_is_on_the_right_of_the_image(name):
    severity = FINDINGS[name].severities[-1]
    for index in range(4):
        for side in ("left", "right"):
            change, phantom = _difference(index, Finding(name, side, severity), 96)
            columns = np.abs(change).sum(0)
            centre = (columns * np.arange(96)).sum() / columns.sum()
            assert (centre > 48) == (side == "left")
            assert phantom.labels[name, side] == 1
            assert phantom.labels[name, "right" if side == "left" else "left"] == 0


def test_bilateral_effusion_is_the_left_one_and_the_right_one():
    both, phantom = _difference(3, Finding("pleural effusion", "bilateral", "moderate"))
    left, at_left = _difference(3, Finding("pleural effusion", "left", "moderate"))
    right, at_right = _difference(3, Finding("pleural effusion", "right", "moderate"))
    # Apart from rounding to grey values, the two sides do not touch.
    assert np.abs(both - left - right).max() <= 2
    boxes = at_left.findings[0].box, at_right.findings[0].box
    corners = [f(b[i] for b in boxes) for i, f in enumerate((min, min, max, max))]
    assert phantom.findings[0].box == tuple(corners)
    assert phantom.labels["pleural effusion", "left"] == phantom.labels["pleural effusion", "right"] == 1


def test_one_finding_does_not_move_another():
    nodule, cardiomegaly = Finding("nodule", "left", "large"), Finding("cardiomegaly", None, "mild")
    alone = draw(7, size=SIZE, findings=(nodule,)).findings[0]
    beside = draw(7, size=SIZE, findings=(cardiomegaly, nodule)).findings[1]
    assert alone == beside


def test_effusion_brightens_and_pneumothorax_darkens_its_side():
    for index in range(4):
        for name, sign in (("pleural effusion", 1), ("consolidation", 1), ("edema", 1)):
            side = "right" if FINDINGS[name].sided else None
            change, _ = _difference(index, Finding(name, side, FINDINGS[name].severities[1]))
            assert sign * change.sum() > 0
        change, _ = _difference(index, Finding("pneumothorax", "right", "moderate"))
        # The pleural line and the collapsed lung are brighter, the free air is darker.
        assert change.min() < -12


def test_labels_follow_findings():
    labels = labels_of([Finding("nodule", "left", "small"), Finding("edema", None, "mild")])
    assert {key for key, value in labels.items() if value} == {"nodule", ("nodule", "left"), "edema"}
    assert ("edema", "left") not in labels
    phantom = draw(21, size=48)
    assert phantom.labels == labels_of(planned(21))


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        (Finding("nodul", "left", "small"), "unknown finding 'nodul'. Did you mean 'nodule'"),
        (Finding("nodule", None, "small"), "nodule has side None"),
        (Finding("edema", "left", "mild"), "edema has side 'left'"),
        (Finding("edema", None, "large"), "edema has severity 'large'"),
    ],
)
def test_unfitting_findings_are_refused(finding, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        draw(0, size=48, findings=(finding,))


def test_impossible_numbers_are_refused():
    with pytest.raises(UserError, match="index and seed must be 0 or more"):
        draw(-1)
    with pytest.raises(UserError, match="size must be at least 32 pixels, got 16"):
        draw(0, size=16)
    with pytest.raises(UserError, match="each finding may be given once"):
        draw(0, size=48, findings=(Finding("nodule", "left", "small"), Finding("nodule", "right", "small")))
