"""CARZero's front door: chunks, banks, modes, shards."""

from __future__ import annotations

import pytest
import torch

from carzero import CARZero, CARZeroConfig
from carzero.errors import UserError
from carzero.models.config import DecoderConfig, ImageEncoderConfig, TextEncoderConfig
from carzero.models.encoded import Encoded
from carzero.models.tokenizer import vocabulary


@pytest.fixture
def six() -> torch.Tensor:
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(8))


def close(got, want):
    # float32 sums in another order; scores of this model are about 1
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def test_chunks_banks_and_encoded_inputs_give_the_same_scores(model, six, texts):
    want = model.similarity(six, texts)
    assert want.shape == (6, 5)
    close(model.similarity(six, texts, batch_size=4), want)
    with torch.no_grad():
        images, encoded = model.encode_images(six), model.encode_texts(texts)
    close(model.similarity(images, encoded, batch_size=5), want)
    bank = model.text_bank(texts)
    assert len(bank) == 5
    close(model.similarity(six[2:4], bank), want[2:4])


def test_similarity_is_the_mean_of_both_logits(model, six, texts):
    image_memory, text_memory = model.logits(six, texts)
    close(model.similarity(six, texts), ((image_memory + text_memory) / 2).detach())


def test_training_mode_is_left_as_it_was_and_has_no_influence(model, six, texts):
    want = model.similarity(six, texts)
    model.train()
    model.text_encoder.eval()
    got = model.similarity(six, texts)
    assert torch.equal(got, want)
    assert not got.requires_grad
    assert model.training
    assert model.decoder.training
    assert not model.text_encoder.training


def test_empty_images_and_texts(model, six, texts):
    assert model.similarity(six[:0], texts).shape == (0, 5)
    assert model.similarity(six, []).shape == (6, 0)


def test_encoded_cat_and_slices(model, texts):
    with torch.no_grad():
        whole = model.encode_texts(texts)
        parts = Encoded.cat([model.encode_texts(texts[:1]), model.encode_texts(texts[1:])])
        images = model.encode_images(torch.randn(2, 3, 64, 64))
    assert torch.equal(parts.row_count, whole.row_count)
    close(parts.memory, whole.memory)
    assert len(whole[1:3]) == 2
    assert torch.equal(whole[torch.tensor([2, 0])].query, whole.query[[2, 0]])
    assert images[:1].row_count is None
    assert Encoded.cat([images, images]).row_count is None
    assert whole.to(torch.float64).memory.dtype == torch.float64
    assert whole.to(torch.float64).row_count.dtype == torch.int32
    with pytest.raises(TypeError, match="slice"):
        whole[0]


def test_shards_see_the_masks_of_the_whole_batch(model, six, texts):
    """With dropout: rows computed on their own, at their global indices, equal the rows of the whole."""
    model = model.double().train()
    model.text_encoder.eval()
    images, encoded = model.encode_images(six.double()).detach(), model.encode_texts(texts).detach()
    whole = model.logits(images, encoded, seed=5)
    evaluated = model.eval().logits(images, encoded)
    assert (whole[0] - evaluated[0]).abs().max() > 1e-3, "dropout is on"
    model.train()
    part = model.logits(images[2:5], encoded[1:], seed=5, image_offset=2, text_offset=1)
    for got, want in zip(part, whole):
        torch.testing.assert_close(got, want[2:5, 1:], rtol=1e-10, atol=1e-10)


def test_a_few_steps_fit_a_batch(model, six, texts):
    """Trainable through both directions, text and image side: the loss of matching pairs falls."""
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(vocabulary(model.tokenizer)), max_tokens=64, dropout=0.0)
    model = CARZero(config, model.tokenizer).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    target = torch.arange(5)
    losses = []
    for _ in range(36):
        loss = sum(
            torch.nn.functional.cross_entropy(logits, target)
            for matrix in model.logits(six[:5], texts)
            for logits in (matrix, matrix.T)
        )
        optimiser.zero_grad()
        loss.backward()
        if not losses:
            silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent, "every trained parameter gets a gradient"
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(4 * torch.tensor(5.0).log().item(), rel=0.05)
    assert losses[-1] < 0.6 * losses[0]


def test_bfloat16_is_near(model, six, texts):
    want = model.similarity(six, texts)
    got = model.to(torch.bfloat16).similarity(six, texts)
    # 8 bits of mantissa through two encoders: a few hundredths of the scores' spread
    assert (got.float() - want).abs().mean() < 0.1 * want.std() + 0.02


def test_image_size_of_a_model(model, texts):
    model.set_image_size(96)
    assert model.config.image.image_size == 96
    assert model.similarity(torch.randn(2, 3, 96, 96), texts).isfinite().all()
    with pytest.raises(UserError, match=r"\[B, 3, 96, 96\]"):
        model.similarity(torch.randn(2, 3, 64, 64), texts)


def test_widths_must_agree():
    text = TextEncoderConfig(width=64, depth=1, heads=1, ffn=64, vocab_size=50, last_layers=1)
    config = CARZeroConfig(ImageEncoderConfig(name="vit_tiny_patch16_224"), text, DecoderConfig(width=64, layers=1))
    with pytest.raises(UserError, match="must have the same width, got 192, 64 and 64"):
        CARZero(config)
