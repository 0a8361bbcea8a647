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
        middle_kept, end_kept: bool ``[L, N, D]``, the masks after both projections; None without dropout, and where
            a kernel draws them again.
        lse: float32 ``[L, N, H]``, log-sum-exps of the scores; None where the backward makes softmax anew.
    """

    end: Tensor
    middle: Tensor | None = None
    query: Tensor | None = None
    attended: Tensor | None = None
    hidden: Tensor | None = None
    middle_kept: Tensor | None = None
    end_kept: Tensor | None = None
    lse: Tensor | None = None


class TapeSize(NamedTuple):
    """What decides about a tape's size: L, N, D, F, the dtype of the queries, and whether anything is dropped.

    Args:
        lse_heads: H for a backend that keeps log-sum-exps and no masks, else 0.
    """

    layers: int
    pairs: int
    width: int
    ffn: int
    dtype: torch.dtype
    device: torch.device
    dropout: bool
    lse_heads: int = 0

    def fields(self, recompute: str) -> dict[str, tuple[tuple[int, int, int], torch.dtype]]:
        """Shape and dtype of the fields of `Tape` that are kept; the widest come first, so that each lies aligned."""
        wide, (gemm, _) = wide_dtype(self.dtype), prepared.gemm_dtype(self.dtype, self.device)
        rows = (self.layers, self.pairs, self.width)
        if recompute == "full":
            return {}
        if recompute == "layer":
            return {"end": (rows, wide)}
        fields = {"end": (rows, wide), "middle": (rows, wide)}
        if self.lse_heads:
            # kernels multiply in the dtype of their inputs wherever they run
            gemm = self.dtype
            fields["lse"] = ((self.layers, self.pairs, self.lse_heads), wide)
        fields |= {
            "query": ((self.layers - 1, self.pairs, self.width), gemm),
            "attended": (rows, gemm),
            "hidden": ((self.layers, self.pairs, self.ffn), gemm),
        }
        if self.dropout and not self.lse_heads:
            fields |= {"middle_kept": (rows, torch.bool), "end_kept": (rows, torch.bool)}
        return fields

    def bytes(self, recompute: str) -> int:
        """Size of the buffer."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.fields(recompute).values())

    def views(self, buffer: Tensor, recompute: str) -> Tape | None:
        """The buffer's fields, or None where nothing is kept."""
        views, start = {}, 0
        for name, (shape, dtype) in self.fields(recompute).items():
            stop = start + prod(shape) * dtype.itemsize
            views[name] = buffer[start:stop].view(dtype).view(shape)
            start = stop
        return Tape(**views) if views else None
