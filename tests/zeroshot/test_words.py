"""Attention over a text's words: the decoder's own rows, under the words that they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot.words import attend_words, row_names

TEXTS = ["There is effusion", "a 2.5 cm mass of the lung"]


def make_model(memory_rows="global+local"):
    torch.manual_seed(0)
    # "mass" and "lung" are spelt by pieces
    tokenizer = word_tokenizer(["there is effusion a of the"])
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), memory_rows=memory_rows)
    model = CARZero(config, tokenizer).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (80, 70), dtype=np.uint8)


@pytest.mark.parametrize("memory_rows", ["global+local", "local"])
def test_weights_are_the_decoders_rows(image, memory_rows):
    model = make_model(memory_rows)
    double = make_model(memory_rows).double()
    query = double.encode_images(ImageProcessor(size=64)(image).double()[None]).query
    first = int(memory_rows == "global+local")
    for text, found in zip(TEXTS, attend_words(model, image, TEXTS)):
        # the memory without collapse: every zero row is attended by itself
        sentence, words = double.text_encoder(double.text_encoder.tokenise([text]))
        memory = torch.zeros(1, double.text_rows, words.shape[-1], dtype=torch.float64)
        memory[:, first : first + words.shape[1]] = words
        if first:
            memory[:, 0] = sentence
        _, maps = double.decoder(memory, query, return_attention=True, backend="reference")
        rows = maps.mean(0)[0, 0].detach().numpy()
        count = len(found.words)
        # float32 scores of weights that `make_model` has enlarged
        close = 5e-5
        assert np.ptp(rows[first + 1 : first + 1 + count]) > 1e-3, "even rows would be equal to anything"
        np.testing.assert_allclose(found.weights, rows[first + 1 : first + 1 + count], rtol=0, atol=close)
        assert found.sentence == pytest.approx(rows[:first].sum(), abs=close)
        assert found.specials == pytest.approx((rows[first], rows[first + 1 + count]), abs=close)
        assert found.padding == pytest.approx(rows[first + 2 + count :].sum(), abs=close)
        total = found.weights.sum() + found.sentence + sum(found.specials) + found.padding
        assert total == pytest.approx(1, abs=1e-5)
        assert found.relative.mean() == pytest.approx(1, abs=1e-5)


def test_words_are_those_that_share_a_row():
    names = row_names(make_model(), TEXTS)
    assert names[0] == ["[CLS]", "there", "is", "effusion", "[SEP]"]
    assert names[1] == ["[CLS]", "a", "2", ".", "5", "cm", "mass", "of", "the", "lung", "[SEP]"]


def test_layers_and_errors(image):
    model = make_model()
    first, last, both = (attend_words(model, image, TEXTS[:1], layers=k)[0].weights for k in ([0], [-1], None))
    assert np.abs(first - last).max() > 1e-4
    np.testing.assert_allclose(both, (first + last) / 2, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"layers must name some of the decoder's layers 0\.\.1, got \[2\]"):
        attend_words(model, image, TEXTS, layers=[2])
    with pytest.raises(UserError, match="one global vector"):
        attend_words(make_model("global"), image, TEXTS)
    empty = attend_words(model, image, ["!"])[0]
    assert empty.words == ()
    assert len(empty.relative) == 0
