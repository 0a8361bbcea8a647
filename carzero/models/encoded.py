"""What an encoder hands to the decoder: memories, queries and how many original rows each memory row stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import MemoryRows


@dataclass(frozen=True)
class Encoded:
    """B encoded images or texts.

    Args:
        memory: ``[B, P, D]`` rows that queries of the other side attend to.
        query: ``[B, D]`` global vectors that attend to memories of the other side; ``[B, T, D]`` rows with the global
            one first and zeros where there is none, for similarities of tokens (`carzero.models.similarity`).
        row_count: int32 ``[B, P]``, how many original rows each row stands for (0 absent, n equal rows), or None where
            every row is itself (images).
    """

    memory: Tensor
    query: Tensor
    row_count: Tensor | None = None

    def __len__(self) -> int:
        return self.query.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Encoded:
        if isinstance(index, int):
            raise TypeError("Encoded: index with a slice or a tensor of indices; an int would lose the batch axis.")
        count = None if self.row_count is None else self.row_count[index]
        return Encoded(self.memory[index], self.query[index], count)

    def to(self, *args, **kwargs) -> Encoded:
        """A copy moved or cast as by `torch.Tensor.to`; `row_count` stays int32."""
        memory = self.memory.to(*args, **kwargs)
        count = None if self.row_count is None else self.row_count.to(memory.device)
        return Encoded(memory, self.query.to(*args, **kwargs), count)

    def detach(self) -> Encoded:
        """A copy that no gradient flows through."""
        return Encoded(self.memory.detach(), self.query.detach(), self.row_count)

    @staticmethod
    def cat(parts: Sequence[Encoded]) -> Encoded:
        """All samples of several, in order; shorter memories get absent rows."""
        rows = max(part.memory.shape[1] for part in parts)
        query = torch.cat(_of_one_length([part.query for part in parts]))
        if all(part.row_count is None and part.memory.shape[1] == rows for part in parts):
            return Encoded(torch.cat([part.memory for part in parts]), query)
        memory = [F.pad(part.memory, (0, 0, 0, rows - part.memory.shape[1])) for part in parts]
        counts = [F.pad(_counts(part), (0, rows - part.memory.shape[1])) for part in parts]
        return Encoded(torch.cat(memory), query, torch.cat(counts))


def _counts(part: Encoded) -> Tensor:
    if part.row_count is not None:
        return part.row_count
    return torch.ones(part.memory.shape[:2], dtype=torch.int32, device=part.memory.device)


def _of_one_length(queries: list[Tensor]) -> list[Tensor]:
    """Global vectors as they are; rows with zeros after them, up to the longest."""
    if queries[0].dim() == 2:
        return queries
    longest = max(query.shape[1] for query in queries)
    return [F.pad(query, (0, 0, 0, longest - query.shape[1])) for query in queries]


def with_tokens(encoded: Encoded) -> Encoded:
    """The same with all present rows of the memory as query; absent ones are zeros."""
    if encoded.row_count is None:
        return Encoded(encoded.memory, encoded.memory)
    query = encoded.memory.masked_fill((encoded.row_count == 0).unsqueeze(-1), 0.0)
    return Encoded(encoded.memory, query, encoded.row_count)


def without_padding(encoded: Encoded, lengths: Tensor) -> Encoded:
    """A text's memory of a global row and `lengths` words: its zero rows are absent, not attended."""
    column = torch.arange(encoded.memory.shape[1], device=lengths.device)
    return Encoded(encoded.memory, encoded.query, (column <= lengths.unsqueeze(1)).to(torch.int32))


def collapsed_counts(lengths: Tensor, columns: int, total: int) -> Tensor:
    """int32 ``[M, columns]``: 1 at the first `lengths` rows, then all remaining rows of `total` as one, then absent."""
    column = torch.arange(columns, device=lengths.device)
    real = lengths.unsqueeze(1)
    return ((column < real) + (total - real) * (column == real)).to(torch.int32)


def encoded_images(query: Tensor, local: Tensor, rows: MemoryRows) -> Encoded:
    """An image's memory: its global vector, then its patch tokens."""
    parts = {"global+local": (query.unsqueeze(1), local), "local": (local,), "global": (query.unsqueeze(1),)}[rows]
    return Encoded(torch.cat(parts, 1) if len(parts) > 1 else parts[0], query)


def encoded_texts(query: Tensor, words: Tensor, lengths: Tensor, max_tokens: int, rows: MemoryRows) -> Encoded:
    """A text's memory with its equal zero rows collapsed into one.

    Args:
        query: ``[N, D]`` sentence vectors.
        words: ``[N, T, D]``, zeros from row ``lengths[n]`` on; T at least the largest length.
        lengths: int64 ``[N]`` rows that are not zero rows.
        max_tokens: rows of the uncollapsed memory (97), the global one not counted.
        rows: which rows the memory has.

    Returns:
        memory ``[N, P, D]`` with P = global row + T + one zero row, and `row_count` ones at real rows,
        ``max_tokens - length`` at the first zero row, 0 after it.
    """
    if rows == "global":
        return Encoded(query.unsqueeze(1), query)
    memory = F.pad(words, (0, 0, 0, 1))
    count = collapsed_counts(lengths, memory.shape[1], max_tokens)
    if rows == "global+local":
        memory = torch.cat((query.unsqueeze(1), memory), 1)
        count = F.pad(count, (1, 0), value=1)
    return Encoded(memory, query, count)
