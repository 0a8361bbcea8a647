"""Work done once for many calls: weights laid out for a backend, memories turned into keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import DecoderWeights


@dataclass(frozen=True)
class PackedWeights:
    """Weights and what a backend made of them; take it from `carzero.ops.pack_weights`.

    Args:
        weights: the tensors themselves.
        dtype: the compute dtype that `blob` was made for; calls in another dtype use `weights`.
        blob: uint8, the native backend's layout, or None where that backend cannot run.
    """

    weights: DecoderWeights
    dtype: torch.dtype
    blob: Tensor | None

    @property
    def spec(self):
        return self.weights.spec


@dataclass(frozen=True)
class ProjectedMemory:
    """All layers' keys and values of M memories, made once for many queries; take it from `project_memory`.

    Args:
        kv: ``[M, P, L, 2, D]``, keys (without their bias, which softmax cancels) and values.
        row_count: int32 ``[M, P]`` or None, as the memory had it.
    """

    kv: Tensor
    row_count: Tensor | None = None

    def __len__(self) -> int:
        return self.kv.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> ProjectedMemory:
        if isinstance(index, int):
            raise TypeError("ProjectedMemory: index with a slice or a tensor of indices; an int would lose the M axis.")
        return ProjectedMemory(self.kv[index], None if self.row_count is None else self.row_count[index])

    def to(self, *args, **kwargs) -> ProjectedMemory:
        """A copy moved or cast as by `torch.Tensor.to`; `row_count` stays int32."""
        kv = self.kv.to(*args, **kwargs)
        return ProjectedMemory(kv, None if self.row_count is None else self.row_count.to(kv.device))


class PackCache:
    """Packs weights again only after one of them was moved, replaced, cast or written to.

    Modules keep one and ask it in evaluation; while training, under torch.compile, or with tensors made in inference
    mode (whose writes leave no trace), the weights themselves come back.
    """

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._packed: PackedWeights | None = None

    def get(self, weights: DecoderWeights, dtype: torch.dtype) -> DecoderWeights | PackedWeights:
        """`weights` packed for a compute dtype, or as they are."""
        from .functional import pack_weights

        tensors = weights.flat()
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if trains or torch.compiler.is_compiling() or any(t.is_inference() for t in tensors):
            return weights
        key = (dtype, weights.spec, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors))
        if self._packed is None or key != self._key:
            self._key, self._packed = key, pack_weights(weights, dtype)
        return self._packed
