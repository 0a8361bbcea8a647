"""Tokenizers: one built from a word list without any download, and those of a folder or of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer that knows every word of `texts` whole and spells all others.

    Args:
        texts: words, prompts or reports; their words are collected, sorted and made one word piece each.

    Returns:
        a Hugging Face fast tokenizer; ids are [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then letters, digits and
        their ``##`` continuations, then the words.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())})
    pieces = [*_SPECIALS, ".", *letters, *(f"##{letter}" for letter in letters), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
    )


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub id.

    Raises:
        UserError: there is none, or it has no ``[CLS]`` and ``[SEP]``.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        what = "a folder without tokenizer files" if Path(source).is_dir() else "no folder, and no hub id within reach"
        raise UserError(
            f"load_tokenizer: cannot open a tokenizer at {str(source)!r}: {what} "
            f"({str(error).strip().splitlines()[0]}). Give the folder that holds tokenizer.json or vocab.txt."
        ) from error
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise UserError(
            f"load_tokenizer: the tokenizer at {str(source)!r} is not BERT-like: it has no [CLS] or no [SEP]."
        )
    return tokenizer


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The name of each id, from 0 on; unused ids are empty."""
    names = tokenizer.get_vocab()
    table = [""] * (max(names.values()) + 1)
    for name, index in names.items():
        table[index] = name
    return table
