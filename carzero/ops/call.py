"""What every backend is given: the decoder's tensors by name, and the options of one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .spec import LAYER_PARAMETERS, DecoderSpec, DecoderWeights

#: The structure of CARZero's decoder, whatever its sizes.
CARZERO = DecoderSpec()


class Layer(NamedTuple):
    """One decoder layer's tensors; shapes as in `LAYER_PARAMETERS`, and None for what only other decoders have."""

    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj_weight: Tensor
    out_proj_bias: Tensor
    linear1_weight: Tensor
    linear1_bias: Tensor
    linear2_weight: Tensor
    linear2_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    norm3_weight: Tensor
    norm3_bias: Tensor
    memory_proj_weight: Any = None
    self_in_proj_weight: Any = None
    self_in_proj_bias: Any = None
    self_out_proj_weight: Any = None
    self_out_proj_bias: Any = None
    norm1_weight: Any = None
    norm1_bias: Any = None


class Params(NamedTuple):
    """All tensors of a decoder; `head` is empty where only the representation is asked for.

    Args:
        other: the spec of another decoder than CARZero's, or None.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    layers: tuple[Layer, ...]
    head: tuple[Tensor, ...]
    heads: int
    eps: float
    other: DecoderSpec | None = None

    @property
    def structure(self) -> DecoderSpec:
        """Whose fields from `activation` on hold; sizes are the tensors'."""
        return self.other or CARZERO

    @classmethod
    def of(cls, weights: DecoderWeights) -> Params:
        """The tensors of public weights."""
        spec = weights.spec
        return cls.from_flat(weights.flat(), spec.layers, spec.heads, spec.eps, spec.other())

    @classmethod
    def from_flat(
        cls, tensors: Sequence[Tensor], layers: int, heads: int, eps: float, other: DecoderSpec | None = None
    ) -> Params:
        """Inverse of `flat`, for a decoder of so many layers."""
        names = LAYER_PARAMETERS if other is None else other.layer_parameters()
        n = len(names)
        body = 2 + n * layers
        groups = tuple(Layer(**dict(zip(names, tensors[2 + n * l : 2 + n * (l + 1)]))) for l in range(layers))
        return cls(tensors[0], tensors[1], groups, tuple(tensors[body:]), heads, eps, other)

    def flat(self) -> list[Tensor]:
        """All tensors in the op's order: norm, layer by layer, head."""
        body = (t for layer in self.layers for t in layer if t is not None)
        return [self.norm_weight, self.norm_bias, *body, *self.head]

    def map(self, function: Callable[[Tensor], Tensor]) -> Params:
        """A copy with `function` applied to every tensor."""
        return self.rebuilt([function(t) for t in self.flat()])

    def rebuilt(self, tensors: Sequence[Tensor]) -> Params:
        """The same decoder of other tensors, in the order of `flat`."""
        return self.from_flat(tensors, len(self.layers), self.heads, self.eps, self.other)


@dataclass(frozen=True)
class Options:
    """The options of one call; tensors are on the memory's device.

    Args:
        row_count: int32 ``[M, P]`` or None.
        pairs: int64 ``[N, 2]`` (memory, query) or None for all pairs.
        seed: int64 of one element; needed where `dropout_p` is above 0.
        projected: the memory is ``[M, P, L, 2, D]`` keys and values.
        simr: stop at the representation ``LN0(t)``.
        tile_pairs: 0 for automatic.
        original_rows: P0, the rows that `row_count` stands for, or 0 to read it off, for which a GPU has to wait.
        query_mask: bool ``[Q, T]``, the tokens of queries that are there, or None for all.
    """

    row_count: Tensor | None = None
    pairs: Tensor | None = None
    dropout_p: float = 0.0
    seed: Tensor | None = None
    direction: int = 0
    memory_offset: int = 0
    query_offset: int = 0
    projected: bool = False
    simr: bool = False
    tile_pairs: int = 0
    original_rows: int = 0
    query_mask: Tensor | None = None


def result_axes(structure: DecoderSpec, queries: Sequence[int], simr: bool) -> tuple[int, ...]:
    """The axes of a result after those of its pairs: T where all tokens are read, then D, or C where it is above 1.

    Args:
        queries: shape of the queries.
    """
    tokens = (queries[1],) if structure.readout == "all" else ()
    if simr:
        return (*tokens, queries[-1])
    return tokens if structure.outputs == 1 else (*tokens, structure.outputs)


def autocast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a tensor of this dtype computes in: autocast's dtype where it is on; float64 stays, as in torch."""
    kind = device.type
    if dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return dtype
    return torch.get_autocast_dtype(kind)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the residual stream, statistics and accumulations: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
