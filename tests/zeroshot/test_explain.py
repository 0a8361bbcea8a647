"""Attention maps lie where the decoder attended, on images of any shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot.explain import Explainer, Explanation, explain, explain_prompts

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


def test_heads_are_averaged(image):
    model = make_model()
    heads = [explain(model, image, PROMPTS[0], heads=[h]).map for h in range(model.config.decoder.heads)]
    assert np.abs(heads[0] - heads[1]).max() > 1e-3
    plain = explain(model, image, PROMPTS[0]).map
    np.testing.assert_allclose(np.mean(heads, 0), plain, rtol=0, atol=1e-6)
    both = explain(model, image, PROMPTS[0], heads=[0, -1], layers=[1]).map
    apart = [explain(model, image, PROMPTS[0], heads=[h], layers=[-1]).map for h in (0, len(heads) - 1)]
    np.testing.assert_allclose(both, np.mean(apart, 0), rtol=0, atol=1e-6)


def test_prompts_are_encoded_once(image, monkeypatch):
    model = make_model()
    explainer = Explainer(model, PROMPTS)
    first = explainer(image)
    monkeypatch.setattr(model, "encode_texts", lambda *_: pytest.fail("the prompts were encoded again"))
    for one, again in zip(first, explainer(image)):
        np.testing.assert_array_equal(one.map, again.map)
        assert one.logit == again.logit


def test_patches_as_they_are():
    one = explanation_of((2, 1), height=128, width=128)
    plain = one.on_image(smooth=False)
    # the square of 64 + 2 * 5 pixels stands for 128: a patch of 16 input pixels is 16 * 128 / 74 wide
    assert set(np.unique(plain)) == {0.0, 16.0}
    rows, columns = np.nonzero(plain)
    scale = 128 / one.geometry.side
    low = (16 + one.geometry.margin) * scale, (32 + one.geometry.margin) * scale
    assert (columns.min(), rows.min()) == (round(low[0]), round(low[1]))
    assert plain.sum() / 16 == pytest.approx((16 * scale) ** 2, rel=0.1)
    # smoothing moves neither the peak nor the whole weight of a patch inside the image
    smooth = one.on_image()
    assert smooth.sum() == pytest.approx(plain.sum(), rel=0.1)
    assert smooth.max() == pytest.approx(16, rel=0.05)


def test_regions_are_boxes_around_connected_parts():
    weights = np.zeros((4, 4), np.float32)
    weights[0, 0], weights[2, 3], weights[3, 3] = 0.2, 0.4, 0.3
    image = np.zeros((74, 74), np.uint8)
    one = Explanation("x", 0.0, weights, image, ImageProcessor(size=64).geometry(74, 74))
    margin = one.geometry.margin
    high, low = one.regions(0.5, smooth=False)
    assert high.box == (48 + margin, 32 + margin, 64 + margin, 64 + margin)
    assert low.box == (margin, margin, 16 + margin, 16 + margin)
    assert (high.share, low.share) == pytest.approx((7 / 9, 2 / 9))
    assert high.peak == pytest.approx(0.4 * 16 / 0.9)
    assert low.peak == pytest.approx(0.2 * 16 / 0.9)
    assert [r.box for r in one.regions(0.7, smooth=False)] == [high.box]
    # smoothed, the box still holds the peak
    x0, y0, x1, y1 = one.regions()[0].box
    x, y = one.peak
    assert x0 <= x <= x1
    assert y0 <= y <= y1
    assert Explanation("x", 0.0, weights * 0, image, one.geometry).regions() == []
    for threshold in (0, 1.1, -1, float("nan")):
        with pytest.raises(UserError, match="share of the maximum"):
            one.regions(threshold)


def test_errors_are_sentences(image):
    with pytest.raises(UserError, match="attends to one global vector"):
        explain(make_model("global"), image, PROMPTS[0])
    for layers in ([2], [-3], []):
        with pytest.raises(UserError, match=r"layers must name some of the decoder's layers 0\.\.1, got"):
            explain(make_model(), image, PROMPTS[0], layers=layers)
    with pytest.raises(UserError, match=r"heads must name some of the decoder's heads 0\.\.\d, got \[9\]"):
        explain(make_model(), image, PROMPTS[0], heads=[9])


def test_gradients_are_not_kept_and_the_mode_stays(image):
    model = make_model().train()
    found = explain(model, image, PROMPTS[0])
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    np.testing.assert_array_equal(found.map, explain(model.eval(), image, PROMPTS[0]).map)
