"""The training augmentation does what its fields say, reproducibly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carzero.data.images import Augmentation, ImageProcessor
from carzero.errors import UserError

STILL = Augmentation(flip=0, degrees=0, translate=0, scale=(1, 1), brightness=(1, 1), contrast=(1, 1))
NOISE = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)


def varied(**fields: object) -> Augmentation:
    return Augmentation(**{**STILL.__dict__, **fields})


def test_equal_generators_give_equal_views_and_others_do_not():
    processor = ImageProcessor()
    first, second, other = (processor.augmented(NOISE, Augmentation(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 224, 224)


def test_without_anything_else_a_view_is_a_crop_and_every_offset_occurs():
    rng, offsets = np.random.default_rng(3), set()
    rows = np.repeat(np.arange(34, dtype=np.uint8)[:, None], 34, 1)
    square = rows + 34 * (rows.T % 5)
    for _ in range(400):
        view = STILL(square, 30, rng)
        top, left = next(
            (t, l) for t in range(5) for l in range(5) if np.array_equal(view, square[t : t + 30, l : l + 30])
        )
        offsets.add((top, left))
    assert len(offsets) == 25


def test_flip_is_as_frequent_as_asked_and_can_be_off():
    for flip in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(4)
        flipped = [np.array_equal(varied(flip=flip)(NOISE, 256, rng), NOISE[:, ::-1]) for _ in range(600)]
        # three standard deviations of a share of 600
        assert abs(np.mean(flipped) - flip) <= 3 * np.sqrt(flip * (1 - flip) / 600)


def test_options_do_not_shift_each_others_draws():
    bright = varied(brightness=(0.8, 0.8))
    both = varied(brightness=(0.8, 0.8), flip=1.0)
    for seed in range(5):
        one = bright(NOISE, 224, np.random.default_rng(seed))
        two = both(NOISE, 224, np.random.default_rng(seed))
        assert np.array_equal(one[:, ::-1], two)


def test_brightness_and_contrast_are_factors_on_value_and_on_distance_from_the_mean():
    rng = np.random.default_rng(5)
    assert np.array_equal(varied(brightness=(0.8, 0.8))(NOISE, 256, rng), (NOISE * np.float32(0.8)).astype(np.uint8))
    contrast = varied(contrast=(0.5, 0.5))(NOISE, 256, rng)
    mean = round(NOISE.mean())
    assert np.abs(contrast - (mean + (NOISE.astype(float) - mean) / 2)).max() <= 1  # one level of truncation


def test_affine_turns_shifts_and_zooms_a_dot_within_its_bounds():
    square = np.zeros((256, 256), np.uint8)
    square[126:130, 186:190] = 255  # 60 pixels right of the centre
    found = []
    for seed in range(200):
        view = varied(degrees=30.0, translate=0.1, scale=(0.9, 1.1))(square, 256, np.random.default_rng(seed))
        weight = view.astype(float) / view.sum()
        found.append([(weight.sum(0) * np.arange(256)).sum() - 127.5, (weight.sum(1) * np.arange(256)).sum() - 127.5])
    x, y = np.array(found).T
    # rotation up to 30 degrees, zoom 0.9-1.1, shift up to 25.6 pixels, half a pixel of interpolation
    reach = 60 * 1.1 + 25.6 * np.sqrt(2) + 0.5
    assert np.hypot(x, y).max() <= reach
    assert np.abs(y).max() <= 60 * 1.1 * 0.5 + 25.6 + 0.5
    assert np.abs(y).max() > 35
    assert x.min() < 35
    assert x.max() > 75


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"flip": 1.5}, "flip must be a probability in 0..1, got 1.5"),
        ({"degrees": -1}, "degrees must not be negative"),
        ({"scale": (1.1, 0.9)}, r"scale must be a range 0 < low <= high, got \(1.1, 0.9\)"),
    ],
)
def test_wrong_fields_get_a_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Augmentation(**fields)
