"""Weights as the Triton kernels want them: LayerNorms folded into the matrices that follow them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .call import Params
from .prepared import Prepared, PreparedLayer


class Folded(NamedTuple):
    """A linear map of a normalised row, ``LN(t) W^T + b = rstd (t W'^T - mean column_sum) + b'``.

    Args:
        weight: W', ``[N, D]`` W times gamma, GEMM dtype.
        column_sum: float32 ``[N]``, of the rounded W': so that a row's mean cancels whatever its rounding.
        bias: b', float32 ``[N]``, b + W beta.
    """

    weight: Tensor
    column_sum: Tensor
    bias: Tensor


class FusedLayer(NamedTuple):
    """One layer: `q` and `hidden` are folded, `plain` has every matrix as it is, for the backward."""

    q: Folded
    hidden: Folded
    o_bias: Tensor
    b2: Tensor
    plain: PreparedLayer


def fuse(params: Params, weights: Prepared) -> list[FusedLayer]:
    """All layers, from the op's tensors and what `prepare` made of them."""
    d = params.norm_weight.shape[0]
    fused = []
    for layer, plain in zip(params.layers, weights.layers, strict=True):
        q = _fold(layer.in_proj_weight[:d], layer.in_proj_bias[:d], plain.norm2, weights.gemm)
        hidden = _fold(layer.linear1_weight, layer.linear1_bias, plain.norm3, weights.gemm)
        fused.append(FusedLayer(q, hidden, layer.out_proj_bias.float(), layer.linear2_bias.float(), plain))
    return fused


def _fold(weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor], gemm: torch.dtype) -> Folded:
    gamma, beta = norm
    wide = weight.float()
    folded = (wide * gamma).to(gemm)
    return Folded(folded, folded.sum(1, dtype=torch.float32), torch.addmv(bias.float(), wide, beta))
