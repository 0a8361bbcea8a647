"""What a run starts from: the model and its optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.checkpoint import load
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import load_tokenizer, word_tokenizer
from carzero.train.config import TrainConfig, one_of

#: Models that `TrainConfig.model` names; the size of the vocabulary follows the tokenizer.
PRESETS = {
    "tiny": CARZeroConfig.tiny(),
    "small": CARZeroConfig.small(),
    "carzero": CARZeroConfig.carzero(),
}


def build_model(config: TrainConfig, texts: Sequence[str]) -> tuple[CARZero, str]:
    """The model to train and where it comes from.

    Args:
        texts: all texts of the manifest; a word-level tokenizer is made from them where none is given.
    """
    if config.init is not None:
        return load(config.init, tokenizer=config.tokenizer), f"weights of {config.init}"
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else word_tokenizer(texts)
    if config.model.endswith(".json"):
        try:
            chosen = CARZeroConfig.from_json(Path(config.model).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"train: cannot read the model configuration {config.model}: {error.strerror}.") from None
    else:
        one_of("model", config.model, PRESETS)
        chosen = PRESETS[config.model]
    chosen = dataclasses.replace(chosen, text=dataclasses.replace(chosen.text, vocab_size=len(tokenizer)))
    vocabulary = config.tokenizer or f"{len(tokenizer)} word pieces made from the texts"
    return CARZero(chosen, tokenizer), f"random weights, {config.model} model, {vocabulary}"


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all trained parameters; matrices decay, biases, norms and other vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
