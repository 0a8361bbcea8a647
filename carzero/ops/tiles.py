"""How the pairs are cut: tiles of memories outermost, blocks of their queries inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of keys and values that exist at a time, and pairs: a block's activations should stay in cache while its GEMMs
# are long enough to run at full rate. Elsewhere than on a CPU that cache is the L2, see `_block_pairs`.
_ROWS = {"cpu": 1600}
_ROWS_ELSEWHERE = 16384
_CPU_PAIRS = 1024
# below this a GEMM of CARZero's width has fewer tiles than a large GPU has multiprocessors
_LEAST_PAIRS = 4096
_L2_UNKNOWN = 40 * 2**20


@dataclass(frozen=True)
class Block:
    """A grid of pairs of one tile.

    Args:
        query: int64 query indices, ``[m, q]``, or ``[1, q]`` where all memories of the tile meet the same queries.
        position: int64 ``[m, q]``, each pair's place in the flat output.
        valid: bool ``[m, q]``, or None where every slot is a pair.
        start: the first position where they follow each other, so that nothing need be gathered; else None.
    """

    query: Tensor
    position: Tensor
    valid: Tensor | None
    start: int | None = None

    def take(self, flat: Tensor) -> Tensor:
        """``[m, q, ...]`` of the pairs' entries of ``[N, ...]``, perhaps a view; zeros where there is no pair."""
        if self.start is not None:
            return self._span(flat)
        taken = flat[self.position]
        if self.valid is None:
            return taken
        return taken.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (taken.dim() - 2)), 0)

    def put(self, flat: Tensor, grid: Tensor) -> None:
        """Write ``[m, q, ...]`` to the pairs' entries of ``[N, ...]``."""
        if self.start is not None:
            self._span(flat).copy_(grid)
        elif self.valid is None:
            flat[self.position] = grid
        else:
            flat[self.position[self.valid]] = grid[self.valid]

    def _span(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.start or 0, self.position.numel()).unflatten(0, self.position.shape)


@dataclass(frozen=True)
class Tile:
    """Memories whose keys and values exist together: int64 ``[m]``, and the blocks of their pairs."""

    memory: Tensor
    blocks: list[Block]


def plan(
    memories: int, queries: int, rows: int, pairs: Tensor | None, device: torch.device, tile: int, pair_bytes: int
) -> Iterator[Tile]:
    """Tiles that cover every pair once.

    Args:
        rows: P, rows of keys and values per memory.
        pairs: int64 ``[N, 2]``, or None for all ``memories * queries`` pairs in row-major order.
        tile: pairs per block; 0 chooses by device.
        pair_bytes: what a pair in flight has in memory at a time.
    """
    most_rows = _ROWS.get(device.type, _ROWS_ELSEWHERE)
    tile = tile or _block_pairs(device, pair_bytes)
    together = max(1, most_rows // max(rows, 1))
    if pairs is not None:
        yield from _plan_list(pairs, memories, device, tile, together)
    elif memories and queries:
        yield from _plan_grid(memories, queries, device, tile, together)


def _block_pairs(device: torch.device, pair_bytes: int) -> int:
    """Pairs of a block: as many thousands as the device's cache holds the activations of."""
    if device.type == "cpu":
        return _CPU_PAIRS
    cache = torch.cuda.get_device_properties(device).L2_cache_size if _has_cuda(device) else _L2_UNKNOWN
    return max(_LEAST_PAIRS, cache // pair_bytes // 1024 * 1024)


def _has_cuda(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def _plan_grid(memories: int, queries: int, device: torch.device, tile: int, together: int) -> Iterator[Tile]:
    # a tile larger than its pairs need only costs memory: few queries gather more memories, many queries fewer
    m_step = min(memories, together, max(1, tile // queries))
    q_step = min(queries, max(1, tile // m_step))
    for m0 in range(0, memories, m_step):
        memory = torch.arange(m0, min(m0 + m_step, memories), device=device)
        blocks = []
        for q0 in range(0, queries, q_step):
            query = torch.arange(q0, min(q0 + q_step, queries), device=device).unsqueeze(0)
            whole = memory.numel() == 1 or query.numel() == queries
            start = m0 * queries + q0 if whole else None
            blocks.append(Block(query, memory.unsqueeze(1) * queries + query, None, start))
        yield Tile(memory, blocks)


def _plan_list(pairs: Tensor, memories: int, device: torch.device, tile: int, together: int) -> Iterator[Tile]:
    # memories with equally many pairs side by side, so that their padded grid wastes little
    counts = torch.bincount(pairs[:, 0], minlength=memories)
    by_memory = torch.argsort(pairs[:, 0], stable=True)
    first = counts.cumsum(0) - counts
    order = torch.argsort(counts, descending=True, stable=True)
    sizes = counts[order].tolist()
    start = 0
    while start < memories and sizes[start]:
        widest = sizes[start]
        stop = min(memories, start + min(together, max(1, tile // widest)))
        memory = order[start : stop - sum(1 for n in sizes[start:stop] if n == 0)]
        q_step = max(1, tile // memory.numel())
        blocks = []
        for q0 in range(0, widest, q_step):
            slot = torch.arange(q0, min(q0 + q_step, widest), device=device)
            valid = slot < counts[memory].unsqueeze(1)
            place = (first[memory].unsqueeze(1) + slot).clamp_(max=pairs.shape[0] - 1)
            position = by_memory[place]
            blocks.append(Block(pairs[position, 1], position, valid))
        yield Tile(memory, blocks)
        start = stop
