"""A model as three graphs of tensors, which other runtimes can hold: image tower, text tower, scores of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carzero.errors import UserError
from carzero.ops.call import Options, Params
from carzero.ops.reference import pair_logits

from .carzero import CARZero
from .decoder import SimRDecoder
from .encoded import encoded_images, encoded_texts
from .text import sum_pieces, word_rows


class ImageTower(nn.Module):
    """`CARZero.encode_images` from pixels to tensors.

    *Equivalent to*::

        images = model.encode_images(pixels)
        return images.memory, images.query
    """

    inputs, outputs = ("pixels",), ("image_memory", "image_query")

    def __init__(self, model: CARZero) -> None:
        super().__init__()
        self.encoder, self.rows = model.image_encoder, model.config.decoder.memory_rows

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """float ``[B, 3, S, S]`` to memory ``[B, 1 + patches, D]`` and query ``[B, D]``."""
        query, local = self.encoder(pixels)
        images = encoded_images(query, local, self.rows)
        return images.memory, images.query


class TextTower(nn.Module):
    """`CARZero.encode_texts` from word pieces to tensors: encoder, sum of its last layers, sums of pieces into words.

    *Equivalent to*, but for rows after the first P, which are absent (row_count 0)::

        texts = model.encode_texts(strings)                                     # memory [N, P, D]
        return texts.memory, texts.query, texts.row_count

    Cleaning, tokenising and cutting to `max_tokens` stay outside.

    Raises:
        UserError: the model has no tokenizer, whose continuation pieces and [SEP] the graph holds.
    """

    inputs, outputs = ("input_ids", "attention_mask"), ("text_memory", "text_query", "text_row_count")
    continuation: Tensor

    def __init__(self, model: CARZero) -> None:
        super().__init__()
        self.config, self.rows = model.config.text, model.config.decoder.memory_rows
        self.encoder = model.text_encoder.model
        self.separator, continuation = model.text_encoder.pooling()
        self.register_buffer("continuation", continuation.to(model.device))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """int64 ``[N, T]`` twice to memory ``[N, T + 2, D]``, query ``[N, D]``, row_count int32 ``[N, T + 2]``.

        T + 1 rows where memories have local rows alone, 1 where they have the global one alone.
        """
        piece_rows, lengths = word_rows(input_ids, self.continuation, self.separator)
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        hidden = torch.stack(output.hidden_states[-self.config.last_layers :])
        words = sum_pieces(hidden, piece_rows, input_ids.shape[1])
        total = self.config.max_tokens
        texts = encoded_texts(words.sum(1) / total, words, lengths, total, self.rows)
        count = texts.row_count
        if count is None:
            count = torch.ones(texts.memory.shape[:2], dtype=torch.int32, device=texts.memory.device)
        return texts.memory, texts.query, count


class PairScores(nn.Module):
    """`CARZero.similarity` of encoded images and texts, every pair materialised in plain torch.

    *Equivalent to*::

        (decoder(image_memory, text_query) + decoder(text_memory, image_query).T) / 2      # [B, N]

    In torch `CARZero.similarity` costs less: this is for runtimes that have no custom op.

    Raises:
        UserError: the model's similarity is another than the decoder.
    """

    inputs = ("image_memory", "image_query", "text_memory", "text_query", "text_row_count")
    outputs = ("scores",)

    def __init__(self, model: CARZero) -> None:
        super().__init__()
        if not isinstance(model.decoder, SimRDecoder):
            raise UserError(
                f"export: only models with similarity='decoder' are exported, this one has {model.config.similarity!r}."
            )
        self.decoder = model.decoder

    def forward(
        self, image_memory: Tensor, image_query: Tensor, text_memory: Tensor, text_query: Tensor, text_row_count: Tensor
    ) -> Tensor:
        """The outputs of the two towers to scores ``[B, N]``."""
        params = Params.of(self.decoder.weights())
        of_images = pair_logits(image_memory, text_query, params, Options())
        # nothing is dropped, so that the number of original rows is never read
        counted = Options(row_count=text_row_count, original_rows=text_memory.shape[1])
        of_texts = pair_logits(text_memory, image_query, params, counted)
        return (of_images + of_texts.transpose(0, 1)) / 2
