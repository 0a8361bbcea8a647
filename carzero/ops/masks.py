"""Dropout multipliers of a set of (memory, query) pairs: 0 where an element is dropped, the keep scale elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .call import Options, Params
from .rng import Site, keep_scale, kept

_PLACES = {
    "attention": (Site.ATTENTION, Site.SELF_ATTENTION),
    "projection": (Site.AFTER_OUT_PROJECTION, Site.AFTER_FFN, Site.AFTER_SELF_OUT_PROJECTION),
    "hidden": (Site.FFN_HIDDEN,),
    "head": (Site.BEFORE_HEAD, Site.HEAD_HIDDEN_1, Site.HEAD_HIDDEN_2, Site.HEAD_HIDDEN_3),
}


def original_rows(row_count: Tensor | None, rows: int) -> int:
    """P0, the rows of the memory before equal rows were collapsed; reads `row_count` back from its device."""
    if row_count is None or row_count.numel() == 0:
        return rows
    start = torch.arange(rows, device=row_count.device)
    return max(1, int(((start + row_count) * (row_count > 0)).max()))


@dataclass(frozen=True)
class PairMasks:
    """Masks of the pairs that `memory` and `query` broadcast to.

    Args:
        memory: int64 global memory indices ``[m, 1]``.
        query: int64 global query indices ``[m, q]`` or ``[1, q]``.
        columns: P0, rows of the memory before collapse.
        dtype: of the multipliers.
        tokens: T, where every query has tokens: multipliers then have an axis T before the last.
        active: sites where anything is dropped.
    """

    memory: Tensor
    query: Tensor
    columns: int
    seed: Tensor
    p: float
    direction: int
    dtype: torch.dtype
    tokens: int | None = None
    active: frozenset[Site] = frozenset(Site)

    @classmethod
    def of(cls, options: Options, memory: Tensor, query: Tensor, columns: int, dtype: torch.dtype) -> PairMasks | None:
        """Masks for local indices, or None where nothing is dropped."""
        if options.dropout_p == 0.0:
            return None
        assert options.seed is not None, "validated at the public door"
        return cls(
            memory + options.memory_offset, query + options.query_offset, columns,
            options.seed, options.dropout_p, options.direction, dtype,
        )  # fmt: skip

    def for_tokens(self, tokens: int, params: Params) -> PairMasks:
        """The same for queries of `tokens` tokens, at the sites of a decoder's `dropout_on`."""
        active = frozenset(site for place in params.structure.dropout_on for site in _PLACES[place])
        return replace(self, tokens=tokens, active=active)

    def features_kept(self, site: Site, layer: int, width: int) -> Tensor:
        """Which elements are kept, bool ``[m, q, width]``."""
        return self._kept(site, layer, 0, self.memory, self.query, width)

    def _kept(self, site: Site, layer: int, head: int | Tensor, memory: Tensor, query: Tensor, columns: int) -> Tensor:
        token: int | Tensor = 0
        if self.tokens is not None:
            memory, query = memory.unsqueeze(-1), query.unsqueeze(-1)
            head = head.unsqueeze(-1) if isinstance(head, Tensor) else head
            token = torch.arange(self.tokens, device=memory.device)
        return kept(self.seed, site, layer, self.direction, head, memory, query, columns, self.p, token)

    def multipliers(self, kept: Tensor) -> Tensor:
        """0 where an element is dropped, the keep scale where it is kept."""
        return kept.to(self.dtype).mul_(keep_scale(self.p))

    def features(self, site: Site, layer: int, width: int) -> Tensor:
        """Multipliers ``[m, q, width]``."""
        return self.multipliers(self.features_kept(site, layer, width))

    def self_attention(self, layer: int, heads: int) -> Tensor:
        """Multipliers ``[m, heads, q, T, T]`` of the softmax weights among a query's tokens."""
        assert self.tokens is not None
        head = torch.arange(heads, device=self.memory.device).view(heads, 1)
        memory, query = self.memory.unsqueeze(1), self.query.unsqueeze(1)
        return self.multipliers(self._kept(Site.SELF_ATTENTION, layer, head, memory, query, self.tokens))

    def attention(self, layer: int, heads: int, rows: int, row_count: Tensor | None) -> Tensor:
        """Multipliers ``[m, heads, q, rows]`` of the softmax weights.

        A row that stands for n original rows gets the share of them that is kept: each has 1/n of the row's weight
        and a lane of its own.

        Args:
            row_count: ``[m, rows]`` or None.
        """
        head = torch.arange(heads, device=self.memory.device).view(heads, 1)
        memory, query = self.memory.unsqueeze(1), self.query.unsqueeze(1)
        stay = self._kept(Site.ATTENTION, layer, head, memory, query, self.columns)
        if row_count is None:
            return self.multipliers(stay)
        # kept lanes among columns start .. start + n - 1, as a difference of running sums
        running = torch.nn.functional.pad(stay.cumsum(-1), (1, 0))
        start = torch.arange(rows, device=row_count.device).clamp_(max=self.columns)
        end = (start + row_count).clamp_(max=self.columns)
        shape = (*running.shape[:-1], rows)
        among = running.gather(-1, _between(end, running).expand(shape)) - running[..., start]
        return among.to(self.dtype) / _between(row_count.clamp(min=1), running) * keep_scale(self.p)


def _between(rows: Tensor, like: Tensor) -> Tensor:
    """``[m, P]`` with an axis of one for each of ``[m, ..., P]``."""
    return rows.view(rows.shape[0], *[1] * (like.dim() - 2), rows.shape[1])
