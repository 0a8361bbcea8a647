"""Dropout multipliers of a set of (memory, query) pairs: 0 where an element is dropped, the keep scale elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .call import Options
from .rng import Site, keep_scale, kept


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
    """

    memory: Tensor
    query: Tensor
    columns: int
    seed: Tensor
    p: float
    direction: int
    dtype: torch.dtype

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

    def features_kept(self, site: Site, layer: int, width: int) -> Tensor:
        """Which elements are kept, bool ``[m, q, width]``."""
        return kept(self.seed, site, layer, self.direction, 0, self.memory, self.query, width, self.p)

    def multipliers(self, kept: Tensor) -> Tensor:
        """0 where an element is dropped, the keep scale where it is kept."""
        return kept.to(self.dtype).mul_(keep_scale(self.p))

    def features(self, site: Site, layer: int, width: int) -> Tensor:
        """Multipliers ``[m, q, width]``."""
        return self.multipliers(self.features_kept(site, layer, width))

    def attention(self, layer: int, heads: int, rows: int, row_count: Tensor | None) -> Tensor:
        """Multipliers ``[m, heads, q, rows]`` of the softmax weights.

        A row that stands for n original rows gets the share of them that is kept: each has 1/n of the row's weight
        and a lane of its own.

        Args:
            row_count: ``[m, rows]`` or None.
        """
        head = torch.arange(heads, device=self.memory.device).view(heads, 1)
        memory, query = self.memory.unsqueeze(1), self.query.unsqueeze(1)
        stay = kept(self.seed, Site.ATTENTION, layer, self.direction, head, memory, query, self.columns, self.p)
        if row_count is None:
            return self.multipliers(stay)
        # kept lanes among columns start .. start + n - 1, as a difference of running sums
        running = torch.nn.functional.pad(stay.cumsum(-1), (1, 0))
        start = torch.arange(rows, device=row_count.device).clamp_(max=self.columns)
        end = (start + row_count).clamp_(max=self.columns)
        shape = (*running.shape[:-1], rows)
        among = running.gather(-1, end[:, None, None].expand(shape)) - running[..., start]
        return among.to(self.dtype) / row_count.clamp(min=1)[:, None, None] * keep_scale(self.p)
