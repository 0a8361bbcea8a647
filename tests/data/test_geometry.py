"""Points and maps go from the original to the model's input and back to where they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from carzero.data.images import ImageProcessor

SHAPES = [(1024, 1024), (900, 1300), (1300, 700), (256, 256), (2001, 1503)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [224, 384])
def test_a_dot_lands_where_it_was(shape, size):
    height, width = shape
    processor = ImageProcessor(size=size)
    geometry = processor.geometry(height, width)
    for fx, fy in [(0.5, 0.5), (0.2, 0.7), (0.81, 0.15), (0.33, 0.33)]:
        grey = np.zeros(shape, np.uint8)
        x, y = round(fx * width) + 0.5, round(fy * height) + 0.5
        cv2.circle(grey, (int(x), int(y)), max(3, max(shape) // 128), 255, -1)
        seen = processor(grey)[0].numpy()
        weight = seen - seen.min()
        rows, columns = np.mgrid[:size, :size] + 0.5
        found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        assert np.allclose(geometry.to_input(x, y), found, atol=0.5)
        # half a pixel of the resized grid, measured on the original
        pixel = max(width / geometry.resized_width, height / geometry.resized_height)
        assert np.abs(np.subtract(geometry.to_original(*found), (x, y))).max() <= 0.5 * pixel


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cells", [14, 224])
def test_the_peak_of_a_map_lands_where_its_cell_lies(shape, cells):
    height, width = shape
    geometry = ImageProcessor().geometry(height, width)
    cell = 224 / cells
    for row, column in [(cells // 2, cells // 2), (cells // 3, cells // 2), (cells // 2, 2 * cells // 3)]:
        values = np.zeros((cells, cells))
        values[row, column] = 1
        mapped = geometry.map_to_original(values, fill=-1.0)
        assert mapped.shape == shape
        rows, columns = np.mgrid[:height, :width] + 0.5
        weight = mapped.clip(0)
        found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        expected = geometry.to_original((column + 0.5) * cell, (row + 0.5) * cell)
        pixel = max(width / geometry.resized_width, height / geometry.resized_height)
        assert np.abs(np.subtract(found, expected)).max() <= 0.5 * pixel


def test_points_go_there_and_back():
    geometry = ImageProcessor().geometry(811, 1403)
    for point in [(0.0, 0.0), (700.5, 405.5), (1403.0, 811.0)]:
        assert np.allclose(geometry.to_original(*geometry.to_input(*point)), point, atol=1e-9)


def test_fill_marks_exactly_what_the_crop_hid_and_constants_stay():
    geometry = ImageProcessor().geometry(512, 512)
    mapped = geometry.map_to_original(np.ones((2, 14, 14)), fill=np.nan)
    assert mapped.shape == (2, 512, 512)
    # 16 of 256 pixels at each edge: 32 of 512
    seen = np.zeros((512, 512), bool)
    seen[32:480, 32:480] = True
    assert np.array_equal(~np.isnan(mapped[0]), seen)
    assert np.allclose(mapped[0][seen], 1.0, atol=1e-6)


def test_padding_is_dropped_from_a_map():
    # a wide image: the square has 64 rows of padding above and below, 48 of them inside the crop
    geometry = ImageProcessor().geometry(128, 256)
    values = np.zeros((224, 224))
    values[:48] = values[176:] = 5.0
    assert (geometry.top, geometry.left, geometry.margin) == (64, 0, 16)
    mapped = geometry.map_to_original(values)
    assert mapped[1:-1].max() < 1e-6


def test_one_cell_maps_are_constant():
    mapped = ImageProcessor().geometry(64, 64).map_to_original(np.full((1, 1), 3.0))
    assert set(np.unique(mapped)) == {0.0, 3.0}
