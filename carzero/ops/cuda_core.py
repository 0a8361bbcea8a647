"""The attention core of the `cuda` backend: the kernels of csrc/cuda, called as torch ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_core import TORCH_CORE
from .cuda import MOST_ABSORBED_ROWS, MOST_ABSORBED_WIDTH, dropout_arguments
from .masks import PairMasks
from .prepared import Prepared
from .tiled_attention import TileMemory


class CudaCore:
    """Attention with keys and values in shared memory; saves log-sum-exps. 16-bit GEMM dtypes, P <= 256."""

    def attend(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
        return _forward(q, part, l, weights, masks, None, None)

    def attend_absorbed(
        self, x: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> Tensor:
        assert part.absorbed is not None
        absorbed, heads = part.absorbed[l], weights.heads
        m, p = part.kv.shape[:2]
        padded = heads * -(-p // 8) * 8
        # the first layer's scores are made before absorption; larger memories than the kernel's are for GEMMs
        if absorbed.keys is None or padded > MOST_ABSORBED_ROWS or x.shape[-1] > MOST_ABSORBED_WIDTH:
            return TORCH_CORE.attend_absorbed(x, part, l, weights, masks)
        assert absorbed.key_bias is not None
        out = x.new_empty((m, x.shape[1], x.shape[2]), dtype=torch.float32)
        torch.ops.carzero_cuda.attention_absorbed(
            x.contiguous(), absorbed.keys, absorbed.values, absorbed.key_bias.to(torch.float32), heads, weights.scale,
            _counts(part), out, *dropout_arguments(masks, l),
        )  # fmt: skip
        return out

    def attend_saving(
        self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> tuple[Tensor, Any]:
        logsumexp = q.new_empty((part.kv.shape[0], weights.heads, q.shape[1]), dtype=torch.float32)
        return _forward(q, part, l, weights, masks, logsumexp, None), logsumexp

    def saved(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Any:
        # dropout does not enter the log-sum-exps
        return self.attend_saving(q, part, l, weights, None)[1]

    def backward(
        self, do: Tensor, q: Tensor, o: Tensor, saved: Any, part: TileMemory, d_kv: Tensor, l: int, weights: Prepared,
        masks: PairMasks | None,
    ) -> Tensor:  # fmt: skip
        delta, d_q = torch.empty_like(saved), torch.empty_like(do, dtype=torch.float32).contiguous()
        torch.ops.carzero_cuda.attention_backward(
            do.to(weights.gemm).contiguous(), q.contiguous(), part.kv[:, :, l, 0], part.kv[:, :, l, 1],
            o.contiguous(), saved, weights.heads, weights.scale, _counts(part), delta, d_q, d_kv[:, :, l, 0],
            d_kv[:, :, l, 1], *dropout_arguments(masks, l),
        )  # fmt: skip
        return d_q

    def attend_mapped(self, q: Tensor, part: TileMemory, l: int, weights: Prepared) -> tuple[Tensor, Tensor]:
        maps = q.new_empty((part.kv.shape[0], q.shape[1], part.kv.shape[1]), dtype=torch.float32)
        return _forward(q, part, l, weights, None, None, maps), maps


def _forward(
    q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None, logsumexp: Tensor | None,
    maps: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_empty((part.kv.shape[0], q.shape[1], q.shape[2]))
    torch.ops.carzero_cuda.attention_forward(
        q.contiguous(), part.kv[:, :, l, 0], part.kv[:, :, l, 1], weights.heads, weights.scale, _counts(part), out,
        logsumexp, maps, *dropout_arguments(masks, l),
    )  # fmt: skip
    return out


def _counts(part: TileMemory) -> Tensor | None:
    return None if part.row_count is None else part.row_count.contiguous()
