"""Cleaning texts, and summing word pieces into words."""

from __future__ import annotations

import pytest
import torch
from published_model import loop_pool

from carzero.models.text import clean_text, pool_words

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "there", "is", "pneumo", "##nia", "##tho", "##rax", "no"]


@pytest.mark.parametrize(
    ("text", "published", "default"),
    [
        ("There is Pneumonia.", "there is pneumonia", "there is pneumonia"),
        ("Pneumonia", "", "pneumonia"),
        ("Nodule of 1.5 cm.", "nodule of 5 cm", "nodule of 1.5 cm"),
        ("Nodule of 1.5cm", "nodule of", "nodule of 1.5 cm"),
        ("a .5 cm nodule", "5 cm nodule", "a .5 cm nodule"),
        ("It measures 5. No effusion.", "it measures no effusion", "it measures 5 no effusion"),
        ("1. No effusion. 2. Normal heart.", "no effusion normal heart", "no effusion normal heart"),
        ("IMPRESSION:\n1. Clear lungs\n2. Stable", "2 stable", "impression clear lungs stable"),
        ("Sjögren-type café", "sjgren type caf", "sjogren type cafe"),
        ("right-sided, non-displaced", "right sided non displaced", "right sided non displaced"),
        ("", "", ""),
        ("...", "", ""),
    ],
)
def test_clean_text(text, published, default):
    if "IMPRESSION" in text:
        # the enumeration's number takes "impression" into a sentence of one word, which is dropped
        published = "clear lungs"
    assert clean_text(text, "published") == published
    assert clean_text(text, "default") == default


IDS = torch.tensor(
    [
        [2, 4, 5, 6, 7, 3, 0, 0],
        [2, 6, 8, 9, 3, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 4, 5, 10, 6, 8, 9, 3],
        [2, 7, 7, 5, 3, 6, 3, 7],
        [7, 7, 4, 1, 1, 7, 3, 0],
    ]
)


@pytest.mark.parametrize("layers", [1, 4])
def test_pool_words_equals_the_loop(layers):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(layers, *IDS.shape, 16, dtype=torch.float64, generator=generator).requires_grad_()
    words, sentence = pool_words(hidden, IDS, VOCAB)
    want_words, want_sentence = loop_pool(hidden, IDS, VOCAB)
    torch.testing.assert_close(words, want_words, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(sentence, want_sentence, rtol=1e-14, atol=1e-14)
    weight = torch.randn(words.shape, dtype=torch.float64, generator=generator)
    got = torch.autograd.grad((words * weight).sum() + sentence.sum(), hidden)[0]
    want = torch.autograd.grad((want_words * weight).sum() + want_sentence.sum(), hidden)[0]
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


def test_pool_words_random_pieces():
    generator = torch.Generator().manual_seed(1)
    for texts, pieces in ((1, 1), (3, 97), (7, 12)):
        ids = torch.randint(4, len(VOCAB), (texts, pieces), generator=generator)
        ids[:, 0] = 2
        ends = torch.randint(0, pieces, (texts,), generator=generator)
        if pieces > 1:
            ids[torch.arange(texts), ends.clamp_min(1)] = 3
        hidden = torch.randn(4, texts, pieces, 8, dtype=torch.float64, generator=generator)
        for got, want in zip(pool_words(hidden, ids, VOCAB), loop_pool(hidden, ids, VOCAB)):
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_states_at_padding_are_never_used():
    hidden = torch.randn(4, 1, 8, 4)
    clean = pool_words(hidden, IDS[:1], VOCAB)
    hidden[:, :, 6:] = float("nan")
    for got, want in zip(pool_words(hidden, IDS[:1], VOCAB), clean):
        assert torch.equal(got, want)


def test_pool_words_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"hidden_states must be \[layers, N, T, D\].*\(4, 2, 3, 8\) and \(2, 4\)"):
        pool_words(torch.zeros(4, 2, 3, 8), torch.zeros(2, 4, dtype=torch.long), VOCAB)
    with pytest.raises(ValueError, match=r"\[SEP\]"):
        pool_words(torch.zeros(4, 1, 2, 8), torch.zeros(1, 2, dtype=torch.long), ["[PAD]", "[CLS]"])
