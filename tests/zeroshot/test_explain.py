"""Attention maps lie where the decoder attended, on images of any shape."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot.explain import Explanation, explain, explain_prompts, inside, pointing_accuracy

PROMPTS = ["there is effusion", "there is a mass"]


def make_model(memory_rows="global+local"):
    torch.manual_seed(0)
    tokenizer = word_tokenizer(PROMPTS)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), memory_rows=memory_rows)
    model = CARZero(config, tokenizer).eval()
    with torch.no_grad():
        # the published initialisation is so small that attention of a new model is nearly even
        for parameter in model.decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def image():
    grey = np.random.default_rng(0).integers(0, 256, (120, 90), dtype=np.uint8)
    return cv2.GaussianBlur(grey, (0, 0), 4)


def explanation_of(cell, *, height=120, width=90, grid=4, size=64):
    """An explanation whose whole attention lies in one patch."""
    weights = np.zeros((grid, grid), np.float32)
    weights[cell] = 0.5
    image = np.full((height, width), 100, np.uint8)
    return Explanation("there is a mass", -1.5, weights, image, ImageProcessor(size=size).geometry(height, width))


@pytest.mark.parametrize("memory_rows", ["global+local", "local"])
def test_map_is_the_decoders_attention(image, memory_rows):
    model = make_model(memory_rows)
    found = explain_prompts(model, image, PROMPTS)
    assert [e.prompt for e in found] == PROMPTS

    double = make_model(memory_rows).double()
    pixels = ImageProcessor(size=64)(image).double()[None]
    images, texts = double.encode_images(pixels), double.encode_texts(PROMPTS)
    _, maps = double.decoder(
        images.memory, texts.query, row_count=images.row_count, return_attention=True, backend="reference"
    )
    # the first row of the memory is the image as a whole
    first = images.memory.shape[1] - 16
    assert first == (memory_rows == "global+local")
    expected = maps.mean(0)[0, :, first:].reshape(2, 4, 4).detach().numpy()
    assert np.ptp(expected) > 0.01, "an even map would be equal to anything"
    for number, one in enumerate(found):
        np.testing.assert_allclose(one.map, expected[number], rtol=0, atol=1e-5)
        assert one.map.sum() <= 1 + 1e-5
        assert one.relative.mean() == pytest.approx(1, abs=1e-5)
    scores = model.similarity(ImageProcessor(size=64)(image)[None], PROMPTS)[0]
    assert [e.logit for e in found] == pytest.approx(scores.tolist(), abs=1e-5)


def test_layers_are_averaged(image):
    model = make_model()
    first, last, both = (explain(model, image, PROMPTS[0], layers=k).map for k in ([0], [-1], [0, 1]))
    assert np.abs(first - last).max() > 1e-3
    np.testing.assert_allclose(both, (first + last) / 2, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(explain(model, image, PROMPTS[0]).map, both)


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (64, 64), (1000, 700)])
@pytest.mark.parametrize("cell", [(0, 1), (2, 2), (3, 1)])
def test_peak_and_picture_lie_at_the_patch(shape, cell):
    one = explanation_of(cell, height=shape[0], width=shape[1])
    x, y = one.peak
    # the patch's centre in the input, then by the geometry that the preprocessing states
    assert one.geometry.to_input(x, y) == pytest.approx(((cell[1] + 0.5) * 16, (cell[0] + 0.5) * 16))
    spread = one.on_image()
    assert spread.shape == shape
    row, column = np.unravel_index(spread.argmax(), shape)
    a, b = one.geometry.to_input(column + 0.5, row + 0.5)
    assert (int(b // 16), int(a // 16)) == cell


def test_overlay_colours_only_where_attention_is():
    one = explanation_of((3, 3))
    picture = one.overlay()
    assert picture.dtype == np.uint8
    assert picture.shape == (120, 90, 3)
    assert (picture[:40] == 100).all(), "no attention, so the image itself"
    coloured = (picture != 100).any(-1)
    # the crop hides the right edge of the narrow image; the strongest colour is inferno's pale end
    row, column = np.unravel_index(one.on_image().argmax(), coloured.shape)
    assert coloured[row, column]
    weak = one.overlay(ceiling=1000 * one.relative.max())
    assert np.abs(weak.astype(int) - 100).max() <= 2


def test_saved_picture_can_be_read(tmp_path, image):
    path = tmp_path / "map.png"
    explain(make_model(), image, "there is a $mass").save(path, boxes=[(10, 20, 40, 60)])
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) > 300
    # the box's outline, in OpenCV's order of colours
    assert (np.abs(picture.astype(int) - (255, 208, 53)).max(-1) < 12).any()


def test_pointing_game():
    assert inside((10, 10), [(0, 0, 5, 5), (8, 8, 12, 12)])
    assert not inside((6, 6), [(0, 0, 5, 5), (8, 8, 12, 12)])
    assert not inside((6, 6), [])
    peaks = [(1.0, 1.0), (9.0, 9.0), (6.0, 6.0), (1.0, 1.0)]
    boxes = [[(0, 0, 5, 5)], [(0, 0, 5, 5), (8, 8, 12, 12)], [(0, 0, 5, 5)], []]
    assert pointing_accuracy(peaks, boxes) == 0.5
    assert math.isnan(pointing_accuracy([], []))
    with pytest.raises(ValueError, match="one list of boxes per peak, got 1 for 2 peaks"):
        pointing_accuracy(peaks[:2], boxes[:1])


def test_errors_are_sentences(image):
    with pytest.raises(UserError, match="attends to one global vector"):
        explain(make_model("global"), image, PROMPTS[0])
    for layers in ([2], [-3], []):
        with pytest.raises(UserError, match=r"layers must name some of the decoder's layers 0\.\.1, got"):
            explain(make_model(), image, PROMPTS[0], layers=layers)


def test_gradients_are_not_kept_and_the_mode_stays(image):
    model = make_model().train()
    found = explain(model, image, PROMPTS[0])
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    np.testing.assert_array_equal(found.map, explain(model.eval(), image, PROMPTS[0]).map)
