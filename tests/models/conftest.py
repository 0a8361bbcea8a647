"""A small model with a tokenizer of its own, for every test of carzero.models."""

from __future__ import annotations

import pytest
import torch
from published_model import perturbed

from carzero import CARZero, CARZeroConfig
from carzero.models.tokenizer import word_tokenizer

TEXTS = [
    "There is pneumonia.",
    "There is no pleural effusion. The heart is enlarged.",
    "Nodule of 1.5 cm in the right upper lobe",
    "cardiomegaly",
    "There is a calcified granuloma, unchanged since the previous study, in the left lower lobe of the lung",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def tokenizer():
    # most words are known whole, the others are spelt with ## pieces
    return word_tokenizer(
        ["there is no pneumonia pleural effusion the heart right left upper lobe lung of in a since previous study"]
    )


@pytest.fixture
def model(tokenizer) -> CARZero:
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), max_tokens=64)
    return perturbed(CARZero(config, tokenizer)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
