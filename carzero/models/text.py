"""Texts on their way to vectors: cleaning them, and summing word pieces into words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import TextMode

_PUBLISHED_SPLIT = re.compile(r"[0-9]+\.")
_WORD = re.compile(r"\w+")
# a number with its decimals is one token
_WORD_OR_DECIMAL = re.compile(r"(?<![\w.])\d*(?:\.\d+)+|\w+")
# "1. " opens an enumerated line: at the start, or after the end of a sentence or line
_ENUMERATION = re.compile(r"(?:^|(?<=[.:;?!\n])|(?<=[.:;?!]\s))\s*\d+\.(?=\s)")


def clean_text(text: str, mode: TextMode = "default") -> str:
    """Lower-case ASCII words of a report or prompt, separated by spaces.

    Args:
        text: any text.
        mode: ``"published"``: the authors' cleaning: ``\\w+`` tokens, non-ASCII characters dropped, sentences split at
            ``[0-9]+.`` and ``.``, sentences of one word dropped (so "Pneumonia" becomes empty and "1.5 cm" "5 cm").
            ``"default"``: the same, but one-word sentences and decimals are kept and accents are folded.

    Source: published file ``CARZero/models/CARZero_model_dqn_wo_self_atten_gl_mlp.py``, ``process_text``.
    """
    if mode == "published":
        sentences = [s for part in _PUBLISHED_SPLIT.split(text.replace("\n", " ")) for s in part.split(".")]
        kept = [tokens for s in sentences if len(tokens := _WORD.findall(s.lower())) > 1]
        return " ".join(_ascii_words(tokens) for tokens in kept)
    folded = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _ascii_words(_WORD_OR_DECIMAL.findall(_ENUMERATION.sub(" ", folded).lower()))


def _ascii_words(tokens: Sequence[str]) -> str:
    return " ".join(filter(None, (token.encode("ascii", "ignore").decode("ascii") for token in tokens)))


def continuation_table(vocab: Sequence[str]) -> Tensor:
    """bool ``[V]``: whether a word piece continues the word before it (its name begins with ``##``)."""
    return torch.tensor([piece.startswith("##") for piece in vocab], dtype=torch.bool)


def word_rows(input_ids: Tensor, continuation: Tensor, separator: int) -> tuple[Tensor, Tensor]:
    """The row that each word piece adds to, and how many rows a text has.

    Args:
        input_ids: int64 ``[N, T]``; [CLS] first, pieces after the first separator are padding.
        continuation: bool ``[V]`` of `continuation_table`.
        separator: id of [SEP].

    Returns:
        int64 ``[N, T]`` with -1 at padding, and int64 ``[N]``.
    """
    is_separator = input_ids == separator
    real = is_separator.cumsum(1) - is_separator.long() == 0
    starts = ~continuation[input_ids] | is_separator
    starts[:, 0] = True
    rows = (starts & real).cumsum(1) - 1
    rows = torch.where(real, rows, -1)
    return rows, rows.amax(1) + 1


def sum_pieces(hidden_states: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum the layers, then the pieces of each row of `word_rows`: ``[L, N, T, D] -> [N, count, D]``, zeros after."""
    pieces = hidden_states.sum(0)
    pieces = torch.where((rows >= 0).unsqueeze(-1), pieces, pieces.new_zeros(()))
    index = rows.clamp_min(0).unsqueeze(-1).expand_as(pieces)
    return pieces.new_zeros(pieces.shape[0], count, pieces.shape[2]).scatter_add(1, index, pieces)


def pool_words(hidden_states: Tensor, input_ids: Tensor, vocab: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sum the last hidden layers and the word pieces of every word into one row each.

    *Equivalent to*, for each text, with h the sum of the layers::

        rows = []                                         # [CLS], the words, [SEP]
        for piece, name in zip(h, names):
            rows[-1] += piece if name.startswith("##") else rows.append(piece)
            if name == "[SEP]": break
        words = rows + zeros up to T;  sentence = words.mean(0)

    Args:
        hidden_states: ``[4, N, T, D]``, the hidden layers to sum (any number of them).
        input_ids: int64 ``[N, T]``.
        vocab: name of each id.

    Returns:
        words ``[N, T, D]``: [CLS] is row 0, [SEP] the last row, all later rows are zeros; and sentence ``[N, D]``, the
        mean over all T rows, zeros and specials included.

    Raises:
        ValueError: shapes disagree, or `vocab` has no ``[SEP]``.

    Source: published file ``CARZero/models/text_model.py``; there a loop over tokens with a host sync each.
    """
    if hidden_states.ndim != 4 or hidden_states.shape[1:3] != input_ids.shape:
        raise ValueError(
            "pool_words: hidden_states must be [layers, N, T, D] and input_ids [N, T], got "
            f"{tuple(hidden_states.shape)} and {tuple(input_ids.shape)}."
        )
    if "[SEP]" not in vocab:
        raise ValueError("pool_words: vocab must name each id and hold '[SEP]'.")
    table = continuation_table(vocab).to(input_ids.device)
    words = sum_pieces(hidden_states, word_rows(input_ids, table, list(vocab).index("[SEP]"))[0], input_ids.shape[1])
    return words, words.mean(1)
