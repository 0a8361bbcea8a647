"""Retrieval ranks by the model's own similarity, a shortlist by its pairs, and ranks are counted without favour."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot.retrieval import Retriever, retrieval_figures

WORDS = ["effusion", "mass", "nodule", "left", "right", "large", "small", "no", "edema"]
TEXTS = [f"there is {a} {b}" for a in WORDS[:5] for b in WORDS[4:8]] + ["no finding", "a large mass in the left lung"]
IMAGES = 13


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    model = CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer).train()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def encoded(model):
    pixels = torch.randn(IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), model.evaluating():
        return model.encode_images(pixels), model.encode_texts(TEXTS)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_pairs_have_the_scores_of_the_whole_matrix(model, encoded, backend):
    retriever = Retriever(model, *encoded, pairs_at_once=17, backend=backend)
    whole = retriever.similarity()
    truth = model.similarity(encoded[0], encoded[1], backend="reference")
    torch.testing.assert_close(whole, truth, rtol=1e-4, atol=1e-5)
    pairs = torch.randint(0, IMAGES, (60, 2), generator=torch.Generator().manual_seed(2))
    pairs[:, 1] += 5
    torch.testing.assert_close(retriever.pair_scores(pairs), truth[pairs[:, 0], pairs[:, 1]], rtol=1e-4, atol=1e-5)
    assert retriever.pair_scores(pairs[:0]).shape == (0,)
    assert model.training, "the mode stays"


@pytest.mark.parametrize("direction", ["image to text", "text to image"])
def test_rank_sorts_the_matrix(model, encoded, direction):
    scores = model.similarity(*encoded).numpy()
    scores = scores if direction == "image to text" else scores.T
    ranking = Retriever(model, *encoded).rank(direction, 4)
    np.testing.assert_array_equal(ranking.index, np.argsort(-scores, 1, kind="stable")[:, :4])
    np.testing.assert_allclose(ranking.scores, -np.sort(-scores, 1)[:, :4], atol=1e-5)
    assert Retriever(model, *encoded).rank(direction, 1000).index.shape == scores.shape


@pytest.mark.parametrize("direction", ["image to text", "text to image"])
def test_a_shortlist_takes_the_nearest_and_reranks_them(model, encoded, direction):
    images, texts = encoded
    norm = model.decoder.norm
    with torch.no_grad():
        a, b = (norm(side.query).double().numpy() for side in (images, texts))
    cosine = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    scores = model.similarity(*encoded).numpy()
    if direction == "text to image":
        cosine, scores = cosine.T, scores.T
    retriever = Retriever(model, images, texts, shortlist=5)
    ranking = retriever.rank(direction, 3)
    for query in range(len(scores)):
        near = np.argsort(-cosine[query])[:5]
        assert set(ranking.index[query]) == set(near[np.argsort(-scores[query, near])[:3]])
    # ranks: of the text with the query's own number, among the shortlist
    ranks = retriever.ranks(direction, {query: [query] for query in range(len(scores))})
    for query, rank in enumerate(ranks):
        near = np.argsort(-cosine[query])[:5]
        if query in near:
            assert rank == 1 + (scores[query, near] > scores[query, query]).sum()
        else:
            assert np.isinf(rank)
    assert np.isinf(ranks).any()
    # as long as there are candidates it is no shortlist
    full = Retriever(model, images, texts, shortlist=1000).rank(direction, 3)
    np.testing.assert_array_equal(full.index, Retriever(model, images, texts).rank(direction, 3).index)


def test_ranks_by_hand(model, encoded, monkeypatch):
    retriever = Retriever(model, encoded[0][:3], encoded[1][:4])
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 2.0]])
    monkeypatch.setattr(retriever, "similarity", lambda: scores)
    right = {0: [1], 1: [2], 2: [1, 3]}
    # one is better; equal scores count as better; of two right ones the best counts, and one equals it
    assert retriever.ranks("image to text", right).tolist() == [2, 4, 2]
    assert retriever.ranks("text to image", {text: [0] for text in range(4)}).tolist() == [1, 1, 3, 3]
    assert np.isinf(retriever.ranks("image to text", {})).all()


def test_figures_by_hand():
    figures = retrieval_figures(np.array([1, 2, 5, 6, 11, np.inf]), 40)
    assert (figures.n, figures.candidates, figures.recall) == (6, 40, {1: 1 / 6, 5: 3 / 6, 10: 4 / 6})
    assert figures.median_rank == 5.5
    assert figures.lost == 1 / 6
    assert retrieval_figures(np.array([1, np.inf, np.inf, 3]), 9).median_rank == np.inf
    assert retrieval_figures(np.array([4.0]), 9).median_rank == 4
    with pytest.raises(ValueError, match="no query"):
        retrieval_figures(np.array([]), 3)


def test_errors_are_sentences(model, encoded):
    with pytest.raises(UserError, match="shortlist must be at least 1, or None for all, got 0"):
        Retriever(model, *encoded, shortlist=0)
    with pytest.raises(UserError, match="needs an image and a text, got 0 and 22"):
        Retriever(model, encoded[0][:0], encoded[1])
    with pytest.raises(UserError, match="k must be at least 1, got 0"):
        Retriever(model, *encoded).rank("image to text", 0)
