"""What one call of an attention kernel is given: checked once, and laid out as the kernels take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_table import Tiles, draws_ahead, precision, target
from .attention_tiles import LOG2E, widths
from .philox import Dropout


@dataclass(frozen=True)
class Call:
    """Tensors and sizes that forward and backward share; see `attention.attention_forward`."""

    name: str
    q: Tensor
    k: Tensor
    heads: int
    scale: float
    count: Tensor | None
    dropout: Dropout | None

    @classmethod
    def of(
        cls, name: str, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, count: Tensor | None,
        dropout: Dropout | None,
    ) -> Call:  # fmt: skip
        """The call, after checks that cost no look at the device."""
        width, rest = divmod(q.shape[-1], heads)
        if rest or width % 16:
            raise ValueError(
                f"{name}: the width of a head must be a multiple of 16, got D={q.shape[-1]} and heads={heads}. "
                "Use the torch backend for other widths."
            )
        if q.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not q.dtype == k.dtype == v.dtype:
            raise ValueError(
                f"{name}: q, k and v must share one of float32, bfloat16 and float16, got {q.dtype}, {k.dtype} and "
                f"{v.dtype}."
            )
        if k.shape != v.shape or q.shape[0] not in (1, k.shape[0]) or q.shape[-1] != k.shape[-1]:
            raise ValueError(
                f"{name}: q [m or 1, Q, D] and k, v [m, P, D] must agree, got {tuple(q.shape)}, {tuple(k.shape)} and "
                f"{tuple(v.shape)}."
            )
        call = cls(name, q, k, heads, scale, None if count is None else count.contiguous(), dropout)
        call.check_strides(k=k, v=v)
        if dropout is not None and not dropout.query_index.stride(-1) == dropout.memory_index.stride(-1) == 1:
            raise ValueError(f"{name}: memory_index and query_index must have contiguous entries.")
        if q.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension of q must be contiguous, got strides {q.stride()}.")
        return call

    def check_contiguous(self, **tensors: Tensor) -> None:
        """Say which tensor is not contiguous."""
        for key, tensor in tensors.items():
            if not tensor.is_contiguous():
                raise ValueError(
                    f"{self.name}: {key} must be contiguous, got shape {tuple(tensor.shape)} and strides "
                    f"{tensor.stride()}."
                )

    def check_strides(self, **pair: Tensor) -> None:
        """Say where a pair of row tensors is not laid out alike with contiguous columns."""
        (first, a), (second, b) = pair.items()
        if a.stride() != b.stride() or a.stride(-1) != 1:
            raise ValueError(
                f"{self.name}: {first} and {second} must have equal strides and contiguous columns, got {a.stride()} "
                f"and {b.stride()}. Views [m, P, D] of one [m, P, L, 2, D] have them."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """m, Q, P."""
        return self.k.shape[0], self.q.shape[1], self.k.shape[1]

    @property
    def width(self) -> int:
        """K, of a head."""
        return self.q.shape[-1] // self.heads

    @property
    def target(self) -> int:
        """Of the device: 80, 90 or 100."""
        return target(self.q.device)

    @property
    def factor(self) -> float:
        """Of the scores, to the base 2."""
        return self.scale * LOG2E.value

    @property
    def q_memory(self) -> int:
        """Elements from a memory's queries to the next one's; 0 where they are shared."""
        return 0 if self.q.shape[0] == 1 else self.q.stride(0)

    @property
    def count_memory(self) -> int:
        return 0 if self.count is None else self.count.stride(0)

    @property
    def ahead(self) -> bool:
        """Whether what dropout keeps is drawn by a kernel of its own."""
        return self.dropout is not None and draws_ahead(self.target, self.count is not None)

    @property
    def index_memory(self) -> int:
        """Elements from a memory's query indices to the next one's; 0 where they are shared."""
        d = self.dropout
        return 0 if d is None or d.query_index.shape[0] == 1 else d.query_index.stride(0)

    def sizes(self) -> tuple[Any, ...]:
        """Arguments of a kernel from `seed` to `direction`."""
        d, (_, queries, rows) = self.dropout, self.shape
        strides = (self.q_memory, self.k.stride(0), self.count_memory)
        if d is None:
            return None, None, None, queries, rows, *strides, 0, self.factor, 0, 0.0, 0, 0
        return (
            d.seed, d.memory_index, d.query_index, queries, rows, *strides, self.index_memory,
            self.factor, d.threshold, d.scale, d.layer, d.direction,
        )  # fmt: skip

    def drops(self) -> dict[str, bool]:
        """The rest of it: whether something is dropped, and drawn where."""
        return {"DROPOUT": self.dropout is not None, "AHEAD": self.ahead}

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """What a kernel is compiled for."""
        return {
            "HEADS": self.heads, "WIDTH": self.width,
            "WIDTHS": widths(self.width, self.q.element_size(), self.target),
            "Q_ROW": self.q.stride(1), "KV_ROW": self.k.stride(1), "QUERIES": tiles.queries, "ROWS": tiles.rows,
            "COUNT": self.count is not None, "PRECISION": precision(self.q.dtype),
        }  # fmt: skip


def splits(device: torch.device, programs: int, steps: int) -> int:
    """Programs that share the tiles of a (memory, head): until each multiprocessor has two, at most one a tile."""
    if device.type != "cuda":
        return min(steps, 2)
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(steps, wanted // programs))
