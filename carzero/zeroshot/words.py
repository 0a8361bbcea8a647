"""Which words of a prompt an image attended to: the decoder's attention over a text memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from carzero.data.images import ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carzero.data.decode import ImageSource
    from carzero.models.carzero import CARZero


@dataclass(frozen=True)
class WordAttention:
    """Attention of one image on the rows of one text, averaged over heads and layers; all of it sums to 1.

    Args:
        text: the prompt.
        words: its words as the model's cleaning and tokenizer leave them.
        weights: float32, one for each word.
        sentence: weight of the sentence row (0 where the memory has none).
        specials: weights of [CLS] and [SEP].
        padding: weight of all zero rows together: they are attended as published.
    """

    text: str
    words: tuple[str, ...]
    weights: NDArray[np.float32]
    sentence: float
    specials: tuple[float, float]
    padding: float

    @property
    def relative(self) -> NDArray[np.float32]:
        """`weights` over their mean: 1 is what a word gets when all are attended alike."""
        return self.weights / max(float(self.weights.mean()), 1e-12) if len(self.weights) else self.weights


@torch.no_grad()
def attend_words(
    model: CARZero, image: ImageSource, texts: Sequence[str], *, layers: Sequence[int] | None = None
) -> list[WordAttention]:
    """Which words of each text an image attended to; no gradient is needed.

    Equivalent to::

        _, maps = model.decoder(texts.memory, images.query, return_attention=True)     # maps [L, T, 1, 1 + 97]
        maps[layers].mean(0)[:, 0]      # sentence, [CLS], words, [SEP], zero rows

    Args:
        model: dropout is off whatever its mode.
        image: what `carzero.ImageProcessor` takes.
        texts: T prompts or reports.
        layers: decoder layers that are averaged; all if None, negative ones count from the last.

    Raises:
        UserError: the model has no decoder, its memory no word rows, or a layer does not exist.
        ImageError: the image cannot be read.
    """
    config = model.config.decoder
    if model.config.similarity != "decoder":
        raise UserError(
            f"attend_words: maps are the decoder's attention, and this model has "
            f"similarity={model.config.similarity!r}."
        )
    if config.memory_rows == "global":
        raise UserError(
            "attend_words: this model's texts are one global vector (decoder.memory_rows='global'), so there are no "
            "words to attend to; use a model with memory_rows 'global+local' or 'local'."
        )
    chosen = list(range(config.layers)) if layers is None else list(layers)
    if not chosen or not all(-config.layers <= layer < config.layers for layer in chosen):
        raise UserError(
            f"attend_words: layers must name some of the decoder's layers 0..{config.layers - 1}, got {chosen}."
        )
    pixels = ImageProcessor(size=model.config.image.image_size)(image).unsqueeze(0)
    names = row_names(model, texts)
    with model.evaluating():
        query = model.encode_images(pixels).query
        encoded = model.encode_texts(list(texts))
        _, maps = model.decoder(
            encoded.memory,
            query,
            row_count=encoded.row_count,
            return_attention=True,
            direction=1,
            original_rows=model.text_rows,
        )
    rows = maps[chosen].float().mean(0)[:, 0].cpu().numpy()
    first = 1 if config.memory_rows == "global+local" else 0
    return [_words(text, name, row, first) for text, name, row in zip(texts, names, rows)]


def row_names(model: CARZero, texts: Sequence[str]) -> list[list[str]]:
    """What each word row of each text holds: [CLS], the words, [SEP]; word pieces of one word are joined."""
    encoder = model.text_encoder
    tokens = encoder.tokenise(list(texts))
    assert encoder.tokenizer is not None
    named = []
    for ids, rows, count in zip(tokens.input_ids.tolist(), tokens.piece_rows.tolist(), tokens.rows.tolist()):
        names = [""] * count
        for piece, row in zip(encoder.tokenizer.convert_ids_to_tokens(ids), rows):
            if row >= 0:
                names[row] += piece.removeprefix("##")
        named.append(names)
    return named


def _words(text: str, names: list[str], row: NDArray[np.float32], first: int) -> WordAttention:
    real = row[first : first + len(names)]
    return WordAttention(
        text=text,
        words=tuple(names[1:-1]),
        weights=real[1:-1],
        sentence=float(row[:first].sum()),
        specials=(float(real[0]), float(real[-1])),
        padding=float(row[first + len(names) :].sum()),
    )
