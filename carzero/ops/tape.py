"""What a forward may keep of each pair for its backward, in one flat buffer of bytes."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from . import prepared
from .call import wide_dtype


class Tape(NamedTuple):
    """Views of the buffer; a list of pairs N in the order of the flat results.

    Args:
        end: ``[L, N, D]`` each layer's output, wide dtype.
        middle: ``[L, N, D]`` the residual stream between attention and feed-forward network, wide dtype. This and all
            that follow are None for ``"layer"``.
        query: ``[L - 1, N, D]`` q of all layers but the first, GEMM dtype.
        attended: ``[L, N, D]`` attention output before its projection, GEMM dtype.
        hidden: ``[L, N, F]`` after ReLU and dropout, GEMM dtype.
        middle_kept, end_kept: bool ``[L, N, D]``, the masks after both projections; None without dropout.
    """

    end: Tensor
    middle: Tensor | None = None
    query: Tensor | None = None
    attended: Tensor | None = None
    hidden: Tensor | None = None
    middle_kept: Tensor | None = None
    end_kept: Tensor | None = None


class TapeSize(NamedTuple):
    """What decides about a tape's size: L, N, D, F, the dtype of the queries, and whether anything is dropped."""

    layers: int
    pairs: int
    width: int
    ffn: int
    dtype: torch.dtype
    device: torch.device
    dropout: bool

    def fields(self, recompute: str) -> list[tuple[tuple[int, int, int], torch.dtype]]:
        """Shape and dtype of the fields of `Tape`, in order; the widest come first, so that each lies aligned."""
        wide, (gemm, _) = wide_dtype(self.dtype), prepared.gemm_dtype(self.dtype, self.device)
        rows = (self.layers, self.pairs, self.width)
        if recompute == "full":
            return []
        if recompute == "layer":
            return [(rows, wide)]
        fields = [
            (rows, wide),
            (rows, wide),
            ((self.layers - 1, self.pairs, self.width), gemm),
            (rows, gemm),
            ((self.layers, self.pairs, self.ffn), gemm),
        ]
        return fields + ([(rows, torch.bool)] * 2 if self.dropout else [])

    def bytes(self, recompute: str) -> int:
        """Size of the buffer."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.fields(recompute))

    def views(self, buffer: Tensor, recompute: str) -> Tape | None:
        """The buffer's fields, or None where nothing is kept."""
        views, start = [], 0
        for shape, dtype in self.fields(recompute):
            stop = start + prod(shape) * dtype.itemsize
            views.append(buffer[start:stop].view(dtype).view(shape))
            start = stop
        return Tape(*views) if views else None
