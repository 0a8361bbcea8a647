"""The Vision Transformer: positions, sizes, errors."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from carzero.errors import UserError
from carzero.models.config import ImageEncoderConfig
from carzero.models.image_encoder import ImageEncoder

SMALL = {"width": 32, "depth": 1, "heads": 2, "patch": 8, "mlp_ratio": 2.0}


def test_sincos_positions_follow_the_formula_and_are_not_trained():
    encoder = ImageEncoder(ImageEncoderConfig(image_size=24, **SMALL))
    position = encoder.model.pos_embed
    assert not position.requires_grad
    assert position.shape == (1, 10, 32)
    assert position[0, 0].abs().max() == 0
    # half of the features for each axis; of these, sines then cosines of position / 10000^(i/8)
    found = set()
    for axis in range(2):
        for frequency in range(8):
            for function in (math.sin, math.cos):
                want = torch.tensor([function(c[axis] / 10000 ** (frequency / 8)) for c in _grid(3)])
                errors = (position[0, 1:] - want[:, None]).abs().amax(0)
                found.add(int(errors.argmin()))
                assert errors.min() < 1e-6
    assert len(found) >= 30, "each function has a feature of its own (equal ones may share)"


def _grid(side: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(side) for column in range(side)]


def test_learned_positions_are_trained():
    assert ImageEncoder(ImageEncoderConfig(image_size=24, position="learned", **SMALL)).model.pos_embed.requires_grad


@pytest.mark.parametrize("size", [16, 40])
def test_other_image_size_resamples_as_timm_does(size):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(image_size=24, **SMALL)).eval()
    before = encoder.model.pos_embed.detach().clone()
    encoder.set_image_size(size)
    want = resample_abs_pos_embed(before, [size // 8, size // 8], num_prefix_tokens=1)
    assert torch.equal(encoder.model.pos_embed, want)
    assert not encoder.model.pos_embed.requires_grad
    assert encoder.config.image_size == size
    query, local = encoder(torch.randn(2, 3, size, size))
    assert query.shape == (2, 32)
    assert local.shape == (2, (size // 8) ** 2, 32)
    assert encoder.grid == (size // 8, size // 8)


def test_published_sizes():
    for size in (224, 384, 512):
        config = ImageEncoderConfig(image_size=size, width=64, depth=1, heads=1)
        query, local = ImageEncoder(config)(torch.randn(1, 3, size, size))
        assert local.shape == (1, (size // 16) ** 2, 64)
        # both follow the final LayerNorm, whose weight is one and bias zero at the start
        for tokens in (query, local):
            torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:-1]), rtol=0, atol=1e-5)
            torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(tokens.shape[:-1]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("patch", [2, 4, 16])
def test_convolutional_stem_gives_the_same_grid(patch):
    config = ImageEncoderConfig(image_size=32, **{**SMALL, "patch": patch}, stem="conv")
    encoder = ImageEncoder(config).eval()
    query, local = encoder(torch.randn(2, 3, 32, 32))
    assert (query.shape, local.shape) == ((2, 32), (2, (32 // patch) ** 2, 32))
    assert encoder.grid == (32 // patch, 32 // patch)
    # a pixel reaches the patches around it and no others: the first convolution and one more a halving
    stem = encoder.model.patch_embed.proj
    pixels = torch.zeros(1, 3, 32, 32)
    plain, pixels[0, :, 0, 0] = stem(pixels), 1.0
    changed = (stem(pixels) - plain).abs().amax((0, 1)) > 0
    assert changed[0, 0]
    assert not changed[3:, 3:].any()


def test_new_matrices_have_the_asked_for_deviation():
    for std in (0.02, 0.1):
        encoder = ImageEncoder(ImageEncoderConfig(image_size=24, init_std=std, **SMALL))
        matrices = [m.weight for m in encoder.model.blocks.modules() if isinstance(m, torch.nn.Linear)]
        assert len(matrices) == 4
        for weight in matrices:
            assert weight.std().item() == pytest.approx(std, rel=0.1)


def test_errors_are_sentences():
    encoder = ImageEncoder(ImageEncoderConfig(image_size=24, **SMALL))
    with pytest.raises(UserError, match=r"must have shape \[B, 3, 24, 24\], got \[2, 3, 24, 32\]"):
        encoder(torch.zeros(2, 3, 24, 32))
    with pytest.raises(UserError, match=r"floating and normalised, got torch\.uint8"):
        encoder(torch.zeros(2, 3, 24, 24, dtype=torch.uint8))
    with pytest.raises(UserError, match="patch must be given as a power of two, got 12"):
        ImageEncoderConfig(image_size=24, patch=12, stem="conv")
    with pytest.raises(UserError, match="init_std must be positive, got 0"):
        ImageEncoderConfig(init_std=0.0)
    with pytest.raises(UserError, match="timm has no model 'vit_bsae_patch16_224'; near it are"):
        ImageEncoder(ImageEncoderConfig(name="vit_bsae_patch16_224"))
    with pytest.raises(UserError, match="vit_base_patch16_siglip_224 has no CLS token followed by a final LayerNorm"):
        ImageEncoder(ImageEncoderConfig(name="vit_base_patch16_siglip_224", width=32, depth=1, heads=2))
    with pytest.raises(UserError, match="resnet18 is no Vision Transformer"):
        ImageEncoder(ImageEncoderConfig(name="resnet18", image_size=64))
