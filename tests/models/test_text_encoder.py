"""Tokenising in one call, computing only what is there, and the warnings and errors on the way."""

from __future__ import annotations

import warnings

import pytest
import torch
from published_model import published_encode_texts
from transformers import BertConfig, BertModel

from carzero import CARZero
from carzero.errors import UserError
from carzero.models.config import TextEncoderConfig
from carzero.models.text_encoder import TextEncoder
from carzero.models.tokenizer import load_tokenizer, vocabulary, word_tokenizer


def test_short_batches_equal_padding_to_max_tokens(model, texts):
    """float32: attention over masked padding adds exact zeros, so only the order of sums differs."""
    sentence, words = published_encode_texts(model, texts)
    encoded = model.encode_texts(texts)
    longest = encoded.memory.shape[1] - 2
    assert longest < model.config.text.max_tokens
    torch.testing.assert_close(encoded.query, sentence, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoded.memory[:, 1 : 1 + longest], words[:, :longest], rtol=1e-5, atol=2e-6)


def test_row_counts_add_up(model, texts):
    encoded = model.encode_texts([*texts, ""]) if model.text_encoder.mode == "published" else model.encode_texts(texts)
    assert encoded.row_count.dtype == torch.int32
    assert encoded.row_count.sum(1).tolist() == [1 + model.config.text.max_tokens] * len(encoded)


def test_passes_by_length_keep_the_order(model, texts):
    whole, parts = model.encode_texts(texts), model.encode_texts(texts, batch_size=2)
    torch.testing.assert_close(parts.query, whole.query, rtol=1e-5, atol=2e-6)
    assert torch.equal(parts.row_count, whole.row_count)
    torch.testing.assert_close(parts.memory, whole.memory, rtol=1e-5, atol=5e-6)


def test_long_texts_are_cut_with_a_warning(model, tokenizer):
    long = "there is no pneumonia " * 30
    with pytest.warns(UserWarning, match=r"1 text\(s\) cut to 64 word pieces, the first: 'there is"):
        encoded = model.encode_texts([long])
    # 62 words between [CLS] and [SEP]: no zero row is left
    assert encoded.row_count.tolist() == [[1] * 65 + [0]]
    sentence, words = published_encode_texts(model, [long])
    torch.testing.assert_close(encoded.query, sentence, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(encoded.memory[:, 1:-1], words, rtol=1e-5, atol=5e-6)
    assert encoded.memory[:, -1].abs().max() == 0


def test_empty_text_warns_in_default_mode_only(model):
    with pytest.warns(UserWarning, match=r"1 text\(s\) empty after cleaning, the first: '\.\.\.'"):
        model.encode_texts(["..."])
    model.text_encoder.mode = "published"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.encode_texts(["pneumonia"]).row_count.tolist() == [[1, 1, 1, 62]]


def test_no_texts(model):
    encoded = model.encode_texts([])
    assert len(encoded) == 0
    assert encoded.memory.shape == (0, 4, 64)


def test_a_string_is_not_a_list_of_texts(model):
    with pytest.raises(UserError, match="texts must be a list of strings, got str"):
        model.encode_texts("There is pneumonia")


def test_without_a_tokenizer(model):
    bare = CARZero(model.config)
    with pytest.raises(UserError, match="opened without a tokenizer"):
        bare.encode_texts(["pneumonia"])


def test_tokenizer_larger_than_the_encoder(tokenizer):
    config = TextEncoderConfig(
        vocab_size=10, width=32, depth=1, heads=2, ffn=32, max_positions=16, max_tokens=16, last_layers=1
    )
    with pytest.raises(UserError, match=rf"has {len(vocabulary(tokenizer))} word pieces and the encoder 10"):
        TextEncoder(config, tokenizer)


def test_word_tokenizer_knows_its_words_and_spells_the_rest(tmp_path):
    tokenizer = word_tokenizer(["Pleural effusion", "no effusion"])
    assert tokenizer.tokenize("Pleural EFFUSION 1.5 cm") == ["pleural", "effusion", "1", ".", "5", "c", "##m"]
    assert tokenizer("no effusion")["input_ids"][0] == tokenizer.cls_token_id
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again("no pleural mass")["input_ids"] == tokenizer("no pleural mass")["input_ids"]
    assert vocabulary(again) == vocabulary(tokenizer)


def test_load_tokenizer_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match="a folder without tokenizer files"):
        load_tokenizer(tmp_path)


def test_start_from_a_hugging_face_folder(tmp_path, tokenizer):
    """Configuration and weights of a pretrained encoder; its pooler is left out, its other fields are kept."""
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
            hidden_act="relu",
        )
    )
    bert.save_pretrained(tmp_path)
    config = TextEncoderConfig.from_hugging_face(tmp_path, max_tokens=24, last_layers=2)
    assert (config.width, config.depth, config.ffn, config.max_positions) == (32, 2, 48, 40)
    assert config.extra["hidden_act"] == "relu"
    encoder = TextEncoder(config, tokenizer).eval()
    saved = bert.state_dict()
    assert set(encoder.model.state_dict()) == {name for name in saved if not name.startswith("pooler.")}
    assert all(torch.equal(value, saved[name]) for name, value in encoder.model.state_dict().items())
    tokens = encoder.tokenise(["there is pneumonia"])
    hidden = bert.eval()(input_ids=tokens.input_ids, output_hidden_states=True).hidden_states
    sentence, words = encoder(tokens)
    # 5 pieces: [CLS], three words, [SEP]
    torch.testing.assert_close(words, hidden[-1] + hidden[-2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sentence, words.sum(1) / 24, rtol=1e-6, atol=1e-7)


def test_unknown_text_encoder():
    with pytest.raises(UserError, match="does not know model_type 'bret'"):
        TextEncoder(TextEncoderConfig(model_type="bret"))
    with pytest.raises(UserError, match="no text encoder at 'no/such/folder/here'"):
        TextEncoderConfig.from_hugging_face("no/such/folder/here")
