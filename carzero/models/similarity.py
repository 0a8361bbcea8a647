"""What may stand in the decoder's place: two projections and a scale, fed to `carzero.similarities`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carzero.similarities import cosine, max_sim, vl_cabs, word_region

from .config import DecoderConfig, SimilarityName

#: Whose queries are all rows of the other side, not its global vector alone: of texts, and of images.
TEXT_TOKENS = ("gloria", "max_sim")
IMAGE_TOKENS = ("max_sim",)

# 1 / 0.07, CLIP's start; GLoRIA's temp3
_SCALE = {"gloria": 10.0}
_LARGEST_SCALE = 100.0


class MemoryRows(NamedTuple):
    """Memories as `PairSimilarity.project` keeps them for many queries: as they are."""

    memory: Tensor
    row_count: Tensor | None


class PairSimilarity(nn.Module):
    """An all-pairs similarity with the call of `SimRDecoder`: memories against the other side's queries, ``[M, Q]``.

    Rows and queries pass one LayerNorm (as RadZero's) and the projection of their side (as GLoRIA's, FILIP's and
    CLIP's). *Equivalent to*, with rows m ``[M, P, D]`` (global, then local) and queries q of them::

        cosine    scale cosine(m global, q global)                          in both directions
        vl_cabs   scale vl_cabs(m, q global, temperature=1 / scale)         in both directions; RadZero has the images'
        max_sim   scale max_sim(m local, q local)                           in both directions, as FILIP
        gloria    scale word_region(image local, text local / sqrt(D))      where memories are images,
                  scale cosine(m global, q global)                          where they are texts, as GLoRIA's two losses

    Args:
        name: which.
        config: `width`, `eps` and `init_std` are used.
    """

    def __init__(self, name: SimilarityName, config: DecoderConfig) -> None:
        super().__init__()
        self.name, self.config, self.width = name, config, config.width
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.image_projection = nn.Linear(config.width, config.width, bias=False)
        self.text_projection = nn.Linear(config.width, config.width, bias=False)
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Projections from N(0, 1 / D); the scale 1 / 0.07 (10 for GLoRIA)."""
        self.norm.reset_parameters()
        for projection in (self.image_projection, self.text_projection):
            projection.weight.normal_(0.0, self.width**-0.5)
        self.log_scale.fill_(math.log(_SCALE.get(self.name, 1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """What the similarity is multiplied by, at most 100."""
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)

    def project(self, memory: Tensor, row_count: Tensor | None = None) -> MemoryRows:
        """Memories for many calls; see `SimRDecoder.project`."""
        return MemoryRows(memory, row_count)

    def forward(
        self,
        memory: Tensor | MemoryRows,
        queries: Tensor,
        *,
        row_count: Tensor | None = None,
        direction: int = 0,
        backend: str = "auto",
        **_decoder_only: object,
    ) -> Tensor:
        """Similarities of all pairs, scaled.

        Args:
            memory: ``[M, P, D]`` rows, the global one first, or what `project` made of them.
            queries: ``[Q, D]`` global vectors, or ``[Q, T, D]`` such rows, where a row of zeros is absent.
            row_count: int32 ``[M, P]``; 0 is an absent row.
            direction: 0 where memories are images, 1 where they are texts.
            backend: as in `carzero.similarities`.
            _decoder_only: seed, offsets, recompute and original_rows of `SimRDecoder`, which has dropout, a tape and
                collapsed rows; nothing here depends on them.

        Returns:
            ``[M, Q]``.
        """
        rows = memory.memory if isinstance(memory, MemoryRows) else memory
        row_count = memory.row_count if isinstance(memory, MemoryRows) else row_count
        token_count = None
        if queries.dim() == 3:
            token_count = (queries != 0).any(-1).to(torch.int32)
        first, second = self.image_projection, self.text_projection
        if direction == 1:
            first, second = second, first
        rows, queries = first(self.norm(rows)), second(self.norm(queries))
        local = row_count if row_count is None else row_count[:, 1:]
        if self.name == "max_sim":
            assert token_count is not None
            found = max_sim(
                rows[:, 1:], queries[:, 1:], row_count=local, token_count=token_count[:, 1:], backend=backend
            )
        elif self.name == "gloria" and direction == 0:
            assert token_count is not None
            # scores of two normalised rows are about sqrt(D) wide; the softmax over words would see one alone
            found = word_region(
                rows[:, 1:], queries[:, 1:] * self.width**-0.5, row_count=local, token_count=token_count[:, 1:],
                backend=backend,
            )  # fmt: skip
        elif self.name == "vl_cabs":
            found = vl_cabs(rows, queries, row_count=row_count, temperature=1.0 / self.scale, backend=backend)
        else:
            found = cosine(rows[:, 0], queries if queries.dim() == 2 else queries[:, 0])
        return self.scale * found
