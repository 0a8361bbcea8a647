"""What the tiled op leaves open: how one layer's attention is computed and differentiated.

`TorchCore` is plain torch and runs everything; `CudaCore` (cuda_core.py) is the kernels of csrc/cuda. A core is chosen
once a call.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from .masks import PairMasks
from .prepared import Prepared
from .tiled_attention import (
    TileMemory,
    attend,
    attend_absorbed,
    attention_backward,
    attention_mask,
    probabilities,
    weigh,
)


class AttentionCore(Protocol):
    """One layer's attention of a block: queries ``[m or 1, q, D]`` against the tile's memories, GEMM dtype."""

    def attend(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
        """Output ``[m, q, D]`` before its projection, GEMM dtype."""

    def attend_absorbed(
        self, x: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> Tensor:
        """Output ``[m, q, D]`` with its projection but without that one's bias, wide dtype; `part.absorbed` is there.

        Args:
            x: the layer's normalised input, or in the first layer its queries.
        """

    def attend_saving(
        self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> tuple[Tensor, Any]:
        """As `attend`, and what `backward` wants to be given."""

    def saved(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Any:
        """The same where the output is known."""

    def backward(
        self, do: Tensor, q: Tensor, o: Tensor, saved: Any, part: TileMemory, d_kv: Tensor, l: int, weights: Prepared,
        masks: PairMasks | None,
    ) -> Tensor:  # fmt: skip
        """Gradient of q ``[m, q, D]``, wide dtype; adds to those of the tile's keys and values, ``[m, P, L, 2, D]``."""

    def attend_mapped(self, q: Tensor, part: TileMemory, l: int, weights: Prepared) -> tuple[Tensor, Tensor]:
        """Output as `attend`, and weights ``[m, q, P]`` averaged over heads, wide dtype."""


class TorchCore:
    """Plain torch, see tiled_attention.py; saves weights and their dropout multipliers."""

    def attend(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Tensor:
        return attend(q, part, l, weights, masks)

    def attend_absorbed(
        self, x: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> Tensor:
        return attend_absorbed(x, part, l, weights, masks)

    def attend_saving(
        self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None
    ) -> tuple[Tensor, Any]:
        a, mask = self.saved(q, part, l, weights, masks)
        used = a if mask is None else a * mask
        return weigh(used.to(weights.gemm), part.values(l, weights.heads)), (a, mask)

    def saved(self, q: Tensor, part: TileMemory, l: int, weights: Prepared, masks: PairMasks | None) -> Any:
        mask = None if masks is None else attention_mask(masks, l, weights.heads, part)
        return probabilities(q, part, l, weights), mask

    def backward(
        self, do: Tensor, q: Tensor, o: Tensor, saved: Any, part: TileMemory, d_kv: Tensor, l: int, weights: Prepared,
        masks: PairMasks | None,
    ) -> Tensor:  # fmt: skip
        a, mask = saved
        return attention_backward(do, q, a, mask, part, d_kv, l, weights)

    def attend_mapped(self, q: Tensor, part: TileMemory, l: int, weights: Prepared) -> tuple[Tensor, Tensor]:
        a = probabilities(q, part, l, weights)
        return weigh(a.to(weights.gemm), part.values(l, weights.heads)), a.mean(0)


TORCH_CORE = TorchCore()
