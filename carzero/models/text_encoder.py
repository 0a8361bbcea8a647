"""Texts to tokens: clean, tokenise, run a BERT-type encoder on what is there, sum word pieces into words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carzero.errors import UserError

from .config import PUBLISHED_TEXT_ENCODER, TextEncoderConfig, TextMode
from .text import clean_text, continuation_table, sum_pieces, word_rows
from .tokenizer import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenisedTexts:
    """N tokenised texts, padded to the T word pieces of the longest.

    Args:
        input_ids: int64 ``[N, T]``.
        attention_mask: int64 ``[N, T]``, 1 at real pieces.
        piece_rows: int64 ``[N, T]``, the word row that each piece adds to, -1 at padding.
        rows: int64 ``[N]``, word rows of each text, [CLS] and [SEP] included.
        max_rows: the largest of `rows`, known without asking the device.
    """

    input_ids: Tensor
    attention_mask: Tensor
    piece_rows: Tensor
    rows: Tensor
    max_rows: int

    def to(self, device: torch.device | str) -> TokenisedTexts:
        """A copy on another device."""
        return TokenisedTexts(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.piece_rows.to(device),
            self.rows.to(device),
            self.max_rows,
        )


class TextEncoder(nn.Module):
    """BERT-type encoder whose last hidden layers are summed and whose word pieces are summed into words.

    Every text counts as `config.max_tokens` rows, zeros after its [SEP]; only the rows of the longest text of a batch
    are computed, for the attention mask keeps the rest from any influence.

    Source: published file ``CARZero/models/text_model.py``.
    """

    def __init__(
        self, config: TextEncoderConfig, tokenizer: PreTrainedTokenizerBase | None = None, mode: TextMode = "default"
    ) -> None:
        super().__init__()
        self.config = config
        self.mode = mode
        self.model = _build(config)
        # the published model reads hidden states only
        if hasattr(self.model, "pooler"):
            self.model.pooler = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if tokenizer is not None:
            self.set_tokenizer(tokenizer)

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.config.width

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use this tokenizer from now on.

        Raises:
            UserError: it has ids that the encoder has no rows for.
        """
        table = vocabulary(tokenizer)
        if len(table) > self.config.vocab_size:
            raise UserError(
                f"TextEncoder: the tokenizer has {len(table)} word pieces and the encoder {self.config.vocab_size}; "
                "give the tokenizer that the encoder was trained with."
            )
        self.tokenizer = tokenizer
        self._continuation = continuation_table(table)

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise UserError(
                "encode_texts: this model was opened without a tokenizer; give one with carzero.load(path, "
                f"tokenizer=FOLDER), for the published checkpoint that of {PUBLISHED_TEXT_ENCODER!r}."
            )
        return self.tokenizer

    def pooling(self) -> tuple[int, Tensor]:
        """What sums pieces into words, as `carzero.models.text.word_rows` takes it: id of [SEP], bool ``[V]`` table."""
        return int(self._need_tokenizer().sep_token_id), self._continuation

    def tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        """Clean and tokenise texts, all in one call of the tokenizer.

        Warns:
            UserWarning: in the default mode, where a text is cut to `max_tokens` word pieces or cleans to nothing.
        """
        tokenizer = self._need_tokenizer()
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"encode_texts: texts must be a list of strings, got {type(texts).__name__}.")
        cleaned = [clean_text(text, self.mode) for text in texts]
        limit = self.config.max_tokens
        pieces = tokenizer(cleaned, truncation=False, verbose=False)["input_ids"] if cleaned else []
        if self.mode == "default":
            _warn_about([t for t, p in zip(texts, pieces) if len(p) > limit], f"cut to {limit} word pieces")
            _warn_about([t for t, c in zip(texts, cleaned) if not c], "empty after cleaning")
        pieces = [p if len(p) <= limit else [*p[: limit - 1], p[-1]] for p in pieces]
        longest = max((len(p) for p in pieces), default=2)
        pad = tokenizer.pad_token_id or 0
        ids = torch.tensor([p + [pad] * (longest - len(p)) for p in pieces], dtype=torch.long).reshape(-1, longest)
        lengths = torch.tensor([len(p) for p in pieces], dtype=torch.long)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        separator, continuation = self.pooling()
        piece_rows, rows = word_rows(ids, continuation, separator)
        return TokenisedTexts(ids, mask, piece_rows, rows, max(rows.tolist(), default=2))

    def forward(self, tokens: TokenisedTexts) -> tuple[Tensor, Tensor]:
        """Encode tokenised texts.

        Args:
            tokens: of `tokenise`, on the encoder's device.

        Returns:
            sentence ``[N, D]``: the mean over `max_tokens` rows, zeros included; and words ``[N, max_rows, D]``: the
            first of these rows, zeros after a text's [SEP].
        """
        if not len(tokens.rows):
            # transformers cannot run an empty batch
            empty = next(self.model.parameters()).new_zeros(0, tokens.max_rows, self.width)
            return empty[:, 0], empty
        output = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
        hidden = torch.stack(output.hidden_states[-self.config.last_layers :])
        words = sum_pieces(hidden, tokens.piece_rows, tokens.max_rows)
        return words.sum(1) / self.config.max_tokens, words


def _build(config: TextEncoderConfig) -> Any:
    from transformers import AutoConfig, AutoModel

    fields = config.hugging_face()
    try:
        hugging_face = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except ValueError as error:
        raise UserError(f"TextEncoder: transformers does not know model_type {config.model_type!r}: {error}") from error
    if config.pretrained is None:
        return AutoModel.from_config(hugging_face)
    try:
        return AutoModel.from_pretrained(config.pretrained, config=hugging_face)
    except OSError as error:
        raise UserError(
            f"TextEncoder: no weights to start from at {config.pretrained!r}: neither a folder with them nor a hub "
            f"id within reach ({str(error).strip().splitlines()[0]})."
        ) from error


def _warn_about(texts: Sequence[str], what: str) -> None:
    if texts:
        example = texts[0] if len(texts[0]) <= 80 else texts[0][:77] + "..."
        warnings.warn(f"{len(texts)} text(s) {what}, the first: {example!r}.", UserWarning, stacklevel=4)
