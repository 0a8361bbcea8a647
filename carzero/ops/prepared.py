"""Weights as the tiled backend wants them: cast once per call, all layers' key and value projections side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Params, wide_dtype


class PreparedLayer(NamedTuple):
    """One layer: matrices in the GEMM dtype, norms in the wide one."""

    q_weight: Tensor
    q_bias: Tensor
    o_weight: Tensor
    o_bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    norm2: tuple[Tensor, Tensor]
    norm3: tuple[Tensor, Tensor]


class Prepared(NamedTuple):
    """All weights of a call.

    Args:
        gemm: dtype of GEMM operands.
        wide: dtype of residual stream, statistics and accumulators.
        kv_weight: ``[L * 2 * D, D]``, key then value, layer by layer.
        kv_bias: ``[L * 2 * D]``, zeros for keys: softmax cancels their bias.
    """

    gemm: torch.dtype
    wide: torch.dtype
    norm: tuple[Tensor, Tensor]
    kv_weight: Tensor
    kv_bias: Tensor
    layers: list[PreparedLayer]
    head: list[Tensor]
    heads: int
    eps: float

    @property
    def scale(self) -> float:
        """1 / sqrt(K), of the scores."""
        return (self.norm[0].shape[0] // self.heads) ** -0.5

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + b`` with operands in the GEMM dtype, result in the wide one."""
        return F.linear(x.to(self.gemm), weight, bias).to(self.wide)

    def layer_norm(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        """LayerNorm in the wide dtype."""
        return F.layer_norm(x, x.shape[-1:], *norm, self.eps)


def gemm_dtype(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype in which this device multiplies inputs of `dtype` fastest without losing accuracy, and why."""
    if dtype not in (torch.bfloat16, torch.float16) or device.type != "cpu":
        return dtype, f"{dtype} operands"
    features = torch.cpu.get_capabilities()
    if dtype == torch.bfloat16 and (features.get("amx_bf16") or features.get("avx512_bf16")):
        return dtype, "this CPU multiplies bfloat16 natively"
    return torch.float32, f"this CPU multiplies float32 faster than {str(dtype).removeprefix('torch.')}"


def prepare(params: Params, dtype: torch.dtype, gemm: torch.dtype | None = None) -> Prepared:
    """Cast and lay out the weights for inputs of `dtype`, with GEMM operands in `gemm` or what `gemm_dtype` says."""
    wide = wide_dtype(dtype)
    if gemm is None:
        gemm, _ = gemm_dtype(dtype, params.norm_weight.device)
    d = params.norm_weight.shape[0]
    layers = [
        PreparedLayer(
            q_weight=layer.in_proj_weight[:d].to(gemm),
            q_bias=layer.in_proj_bias[:d].to(gemm),
            o_weight=layer.out_proj_weight.to(gemm),
            o_bias=layer.out_proj_bias.to(gemm),
            w1=layer.linear1_weight.to(gemm),
            b1=layer.linear1_bias.to(gemm),
            w2=layer.linear2_weight.to(gemm),
            b2=layer.linear2_bias.to(gemm),
            norm2=(layer.norm2_weight.to(wide), layer.norm2_bias.to(wide)),
            norm3=(layer.norm3_weight.to(wide), layer.norm3_bias.to(wide)),
        )
        for layer in params.layers
    ]
    value_biases = torch.stack([layer.in_proj_bias[2 * d :] for layer in params.layers])
    kv_bias = torch.stack((torch.zeros_like(value_biases), value_biases), 1).flatten()
    return Prepared(
        gemm=gemm,
        wide=wide,
        norm=(params.norm_weight.to(wide), params.norm_bias.to(wide)),
        kv_weight=torch.cat([layer.in_proj_weight[d:] for layer in params.layers]).to(gemm),
        kv_bias=kv_bias.to(gemm),
        layers=layers,
        head=[t.to(gemm) for t in params.head],
        heads=params.heads,
        eps=params.eps,
    )
