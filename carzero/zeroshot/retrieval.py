"""Which report belongs to which image: all pairs through the op, or a cosine shortlist reranked by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.encoded import Encoded

Direction = Literal["image to text", "text to image"]
#: R of R@k as published tables have them.
TOPS = (1, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """Candidates of each query, best first.

    Args:
        index: int64 ``[queries, k]`` numbers of candidates.
        scores: float32 ``[queries, k]``, their similarity, descending.
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]


class Retriever:
    """Ranks encoded texts for encoded images and the other way round.

    *Equivalent to*, without a shortlist, for images against texts::

        similarity = model.similarity(images, texts)                       # [I, T]
        similarity.sort(1, descending=True)

    With a shortlist of n, the cosine of the global vectors (each through the decoder's LayerNorm) chooses n candidates
    a query, and the op scores these pairs only (its `pairs`), in both directions of attention.

    Args:
        model: a `CARZero`; used without dropout.
        images: encoded images.
        texts: encoded texts.
        shortlist: candidates of each query that are scored by the op; None: all.
        pairs_at_once: pairs, or images, scored at a time.
        backend: as in `carzero.ops.pair_logits`.
    """

    def __init__(
        self,
        model: CARZero,
        images: Encoded,
        texts: Encoded,
        *,
        shortlist: int | None = None,
        pairs_at_once: int = 4096,
        backend: str = "auto",
    ) -> None:
        if shortlist is not None and shortlist < 1:
            raise UserError(f"Retriever: shortlist must be at least 1, or None for all, got {shortlist}.")
        if shortlist is not None and model.config.similarity != "decoder":
            raise UserError(
                f"Retriever: a shortlist is reranked by the decoder, and this model has "
                f"similarity={model.config.similarity!r}; score all pairs, without a shortlist."
            )
        if not len(images) or not len(texts):
            raise UserError(f"Retriever: needs an image and a text, got {len(images)} and {len(texts)}.")
        self.model, self.images, self.texts = model, images, texts
        self.shortlist, self.pairs_at_once, self.backend = shortlist, pairs_at_once, backend
        self._all: Tensor | None = None

    @torch.no_grad()
    def cosine(self) -> Tensor:
        """float32 ``[I, T]``: cosine of the global vectors after the decoder's LayerNorm."""
        norm = self.model.decoder.norm or torch.nn.Identity()
        images, texts = (F.normalize(norm(side.query).float(), dim=1) for side in (self.images, self.texts))
        return images @ texts.T

    @torch.no_grad()
    def similarity(self) -> Tensor:
        """float32 ``[I, T]``: the op's score of every pair, computed once."""
        if self._all is None:
            bank = self.model.text_bank(self.texts)
            step = max(1, self.pairs_at_once // len(self.texts))
            self._all = self.model.similarity(self.images, bank, batch_size=step, backend=self.backend).float()
        return self._all

    @torch.no_grad()
    def pair_scores(self, pairs: Tensor) -> Tensor:
        """Scores of some pairs: int64 ``[N, 2]`` (image, text) -> float32 ``[N]``; `similarity` at those places."""
        # neighbours in this order share their memories' keys and values
        order = torch.argsort(pairs[:, 0] * len(self.texts) + pairs[:, 1])
        scores = torch.empty(len(pairs), dtype=torch.float32, device=pairs.device)
        with self.model.evaluating():
            for part in order.split(self.pairs_at_once):
                scores[part] = self._score(pairs[part])
        return scores

    def _score(self, pairs: Tensor) -> Tensor:
        """As `CARZero.similarity`: each image and text of the pairs is taken once, both directions are averaged."""
        rows, image = pairs[:, 0].unique(return_inverse=True)
        columns, text = pairs[:, 1].unique(return_inverse=True)
        images, texts = self.images[rows], self.texts[columns]
        decoder = self.model.decoder
        image_memory = decoder(
            images.memory,
            texts.query,
            row_count=images.row_count,
            pairs=torch.stack((image, text), 1),
            direction=0,
            backend=self.backend,
        )
        text_memory = decoder(
            texts.memory,
            images.query,
            row_count=texts.row_count,
            pairs=torch.stack((text, image), 1),
            direction=1,
            backend=self.backend,
        )
        return ((image_memory + text_memory) / 2).float()

    def rank(self, direction: Direction, k: int = 10) -> Ranking:
        """The best k candidates of each query; fewer where there are fewer, or the shortlist is shorter.

        Args:
            direction: ``"image to text"``: texts for each image; ``"text to image"``: images for each text.
            k: candidates to return.
        """
        if k < 1:
            raise UserError(f"Retriever.rank: k must be at least 1, got {k}.")
        candidates, scores = self._candidates(direction)
        best = scores.sort(stable=True, dim=1, descending=True).indices[:, :k]
        return Ranking(candidates.gather(1, best).cpu().numpy(), scores.gather(1, best).cpu().numpy())

    def _candidates(self, direction: Direction) -> tuple[Tensor, Tensor]:
        """Numbers and scores of the candidates of each query, [queries, n]."""
        forward = direction == "image to text"
        count = len(self.texts) if forward else len(self.images)
        if self.shortlist is None or self.shortlist >= count:
            scores = self.similarity()
            scores = scores if forward else scores.T
            return torch.arange(count, device=scores.device).expand(len(scores), -1), scores
        cosine = self.cosine() if forward else self.cosine().T
        candidates = cosine.topk(self.shortlist, 1).indices
        query = torch.arange(len(cosine), device=cosine.device)[:, None].expand_as(candidates)
        pairs = torch.stack((query, candidates) if forward else (candidates, query), -1).reshape(-1, 2)
        return candidates, self.pair_scores(pairs).view_as(candidates)

    def ranks(self, direction: Direction, right: Mapping[int, Sequence[int]]) -> NDArray[np.float64]:
        """Rank of each query's best right candidate, from 1; infinite where the shortlist lost all of them.

        A wrong candidate of the same score counts as better, so equal scores for all earn nothing.

        Args:
            direction: as in `rank`.
            right: query -> the numbers of its right candidates; a query that is not there has none.
        """
        candidates, scores = (part.cpu().numpy() for part in self._candidates(direction))
        found = np.full(len(candidates), np.inf)
        for query, (numbers, values) in enumerate(zip(candidates, scores)):
            is_right = np.isin(numbers, list(right.get(query, ())))
            if is_right.any():
                found[query] = 1 + np.count_nonzero(values[~is_right] >= values[is_right].max())
        return found


@dataclass(frozen=True)
class RetrievalFigures:
    """How well one direction retrieves.

    Args:
        n, candidates: queries, and what each chooses from.
        recall: share of queries whose best right candidate is among the first 1, 5, 10.
        median_rank: of the best right candidate; infinite where half of the queries lost theirs.
        lost: share of queries without a right candidate in the shortlist; 0 without one.
    """

    n: int
    candidates: int
    recall: dict[int, float]
    median_rank: float
    lost: float


def retrieval_figures(ranks: NDArray[np.float64], candidates: int, tops: Sequence[int] = TOPS) -> RetrievalFigures:
    """R@k, median rank and the share lost, from `Retriever.ranks`."""
    if not len(ranks):
        raise ValueError("retrieval_figures: no query.")
    recall = {k: float((ranks <= k).mean()) for k in tops}
    # of an even number of queries the lower of the two middle ranks and infinity would have no mean
    ordered = np.sort(ranks)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    median = float((low + high) / 2)
    return RetrievalFigures(len(ranks), candidates, recall, median, float(np.isinf(ranks).mean()))
