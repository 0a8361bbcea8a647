"""What a run starts from: the model and its optimizer."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.checkpoint import load
from carzero.models.config import CARZeroConfig, ImageEncoderConfig, TextEncoderConfig
from carzero.models.tokenizer import load_tokenizer, word_tokenizer
from carzero.train.config import TrainConfig, one_of
from carzero.train.image_weights import image_tensors, load_image_weights

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

    Raises:
        UserError: a part cannot be had, or the parts do not fit each other.
    """
    init = config.init
    if init.weights is not None:
        return load(init.weights, tokenizer=config.tokenizer), f"weights of {init.weights}"
    torch.manual_seed(config.seed)
    source = config.tokenizer or init.text
    tokenizer = load_tokenizer(source) if source else word_tokenizer(texts)
    vocabulary = source or f"{len(tokenizer)} word pieces made from the texts"
    chosen = _preset(config.model)
    text = dataclasses.replace(chosen.text, vocab_size=len(tokenizer))
    if init.text is not None:
        text = TextEncoderConfig.from_hugging_face(
            init.text, max_tokens=chosen.text.max_tokens, last_layers=chosen.text.last_layers
        )
    image = chosen.image
    if init.image is not None and not Path(init.image).exists():
        # a timm name brings its own sizes
        image = ImageEncoderConfig(_timm_name(init.image), image_size=image.image_size, position="learned")
    mode = "published" if config.text == "published" else chosen.text_mode
    model = CARZero(dataclasses.replace(chosen, image=image, text=text, text_mode=mode), tokenizer)
    parts = [f"{config.model} model, {vocabulary}"]
    if init.image is not None:
        tensors = image_tensors(init.image)
        parts.append(load_image_weights(model.image_encoder, tensors, init.image))
    if init.text is not None:
        parts.append(f"text encoder of {init.text}")
    rest = {0: "all", 1: "other", 2: "decoder"}[(init.image is not None) + (init.text is not None)]
    return model, f"{'; '.join(parts)}; {rest} weights random"


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over all trained parameters; under AdamW matrices decay, biases, norms and other vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(
            trained, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )  # fmt: skip
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def _preset(name: str) -> CARZeroConfig:
    if not name.endswith(".json"):
        one_of("model", name, PRESETS)
        return PRESETS[name]
    try:
        return CARZeroConfig.from_json(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"train: cannot read the model configuration {name}: {error.strerror}.") from None


def _timm_name(name: str) -> str:
    import timm

    if not timm.is_model(name.removeprefix("timm/").split(".")[0]):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models("vit*"), 3, 0.0))
        raise UserError(
            f"train: init.image {name!r} is neither a file or folder here nor a timm model; near it are {near}."
        )
    return name.removeprefix("timm/")
