"""The similarity-representation decoder as a module: its parameters, fed to `carzero.ops`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from carzero.errors import UserError
from carzero.ops import PackCache, ProjectedMemory, pair_attention, pair_logits, project_memory
from carzero.ops.spec import DecoderSpec, DecoderWeights, asdict

from .config import DecoderConfig
from .encoded import collapsed_counts
from .upstream import decoder_tensors


class _Layer(nn.Module):
    """One decoder layer's parameters under the names of `DecoderSpec.layer_parameters`."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        for name, shape in zip(spec.layer_parameters(), spec.layer_shapes()):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters in the op's order."""
        return tuple(self.parameters())


class SimRDecoder(nn.Module):
    """All-pairs cross-attention similarity: M memories against Q queries give ``[M, Q]`` logits.

    *Equivalent to* (dropout left out; see docs/conventions.md)::

        m, t = LN0(memory), LN0(queries)                                # [M, P, D], [Q, D] broadcast over M
        for l in range(L):
            t = t + Wo softmax(q(LN2(t)) k(m)^T / sqrt(K)) v(m) + bo
            t = t + W2 relu(W1 LN3(t) + b1) + b2
        logits = head(LN0(t))                                           # [M, Q]

    and to the decoders of other repositories as the fields of the spec say (docs/drop-in.md).

    Args:
        config: a `DecoderConfig`, or a `DecoderSpec` (then with dropout 0.1).

    Source: CARZero section 3.3; published file ``CARZero/models/dqn_wo_self_atten_mlp.py``.
    """

    def __init__(self, config: DecoderSpec | None = None) -> None:
        super().__init__()
        config = DecoderConfig() if config is None else config
        self.config = config if isinstance(config, DecoderConfig) else DecoderConfig(**asdict(config))
        self.spec = self.config.spec
        self.norm = nn.LayerNorm(self.spec.width, eps=self.spec.eps) if self.spec.norm_on else None
        self.layers: Any = nn.ModuleList(_Layer(self.spec) for _ in range(self.spec.layers))
        widths = self.spec.head_widths()
        self.head: Any = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self._packed = PackCache()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights as published: matrices from N(0, `init_std`); norms 1 and 0; attention biases 0.

        The biases of the linear maps keep torch's own uniform initialisation, as there.
        """
        if self.norm is not None:
            self.norm.reset_parameters()
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.endswith("weight") and not name.startswith("norm"):
                    parameter.normal_(0.0, self.config.init_std)
                elif name.startswith("norm"):
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                elif name.startswith("linear"):
                    bound = getattr(layer, name.replace("bias", "weight")).shape[1] ** -0.5
                    parameter.uniform_(-bound, bound)
                else:
                    parameter.zero_()
        for linear in self.head:
            linear.reset_parameters()
            linear.weight.normal_(0.0, self.config.init_std)

    def weights(self) -> DecoderWeights:
        """The parameters as `carzero.ops` takes them; gradients flow into this module."""
        layers = tuple(layer.tensors() for layer in self.layers)
        head = tuple(p for linear in self.head for p in (linear.weight, linear.bias))
        if self.norm is None:
            none = layers[0][0].new_empty(0)
            return DecoderWeights(self.spec, none, none, layers, head)
        return DecoderWeights(self.spec, self.norm.weight, self.norm.bias, layers, head)

    def project(self, memory: Tensor, row_count: Tensor | None = None) -> ProjectedMemory:
        """All layers' keys and values of memories that many queries will meet: a cached text bank; no gradient."""
        with torch.no_grad():
            return project_memory(memory, self._packed.get(self.weights(), memory.dtype), row_count=row_count)

    def forward(
        self,
        memory: Tensor | ProjectedMemory,
        queries: Tensor,
        *,
        lengths: Tensor | None = None,
        return_attention: bool = False,
        row_count: Tensor | None = None,
        pairs: Tensor | None = None,
        seed: int | Tensor | None = None,
        direction: int = 0,
        memory_offset: int = 0,
        query_offset: int = 0,
        backend: str = "auto",
        recompute: str = "auto",
        tile_pairs: int | None = None,
        original_rows: int | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of all pairs, or of some.

        Args:
            memory: ``[M, P, D]``, or what `project` made of it.
            queries: ``[Q, D]``, same dtype; ``[Q, T, D]`` where the spec has self-attention.
            lengths: int ``[M]``, real rows of each memory, the global row included; all later rows count as zero rows
                whatever they hold: they are attended, and get zero gradient.
            return_attention: also return head-averaged maps.
            row_count: int32 ``[M, P]``, how many original rows each row stands for; not together with `lengths`.
            pairs: int64 ``[N, 2]`` (memory, query), to score only these.
            seed: of the dropout masks while training; None draws one from torch's generator.
            direction: 0 where memories are images, 1 where they are texts; random numbers only.
            memory_offset, query_offset: global index of the first memory and query; random numbers only.
            backend, recompute, tile_pairs, original_rows, query_mask: as in `carzero.ops.pair_logits`.

        Returns:
            logits ``[M, Q]`` (``[N]`` for pairs); with `return_attention` also maps ``[L, M, Q, P]`` (``[L, N, P]``)
            at the full P. Axes of tokens and outputs as in `carzero.ops.pair_logits`.

        Raises:
            UserError: `lengths` has another shape, or comes together with `row_count` or a projected memory.
        """
        if lengths is not None:
            if isinstance(memory, Tensor) and original_rows is None:
                original_rows = memory.shape[1]
            memory, row_count = _collapse(memory, lengths, row_count)
        dropout = self.config.dropout if self.training else 0.0
        if dropout > 0.0 and seed is None:
            seed = torch.randint(2**62, (1,), dtype=torch.int64, device=queries.device)
        weights = self._packed.get(self.weights(), _compute_dtype(queries))
        logits = pair_logits(
            memory,
            queries,
            weights,
            row_count=row_count,
            pairs=pairs,
            dropout_p=dropout,
            seed=seed if dropout > 0.0 else None,
            direction=direction,
            memory_offset=memory_offset,
            query_offset=query_offset,
            backend=backend,
            recompute=recompute,
            tile_pairs=tile_pairs,
            original_rows=original_rows,
            query_mask=query_mask,
        )
        if not return_attention:
            return logits
        with torch.no_grad():
            return logits, pair_attention(
                memory, queries, weights, row_count=row_count, pairs=pairs, original_rows=original_rows,
                query_mask=query_mask,
            )  # fmt: skip

    @classmethod
    def from_upstream(cls, state_dict: Mapping[str, Tensor], heads: int = 4) -> SimRDecoder:
        """A decoder with the weights of a published one.

        Args:
            state_dict: published key names, with or without the prefix ``CARZero.fusion_module.``; other parts of
                a whole checkpoint may be there as well.
            heads: attention heads, which leave no trace in the weights.

        Raises:
            UserError: a key is missing, unknown or has the wrong shape, or the two names of the shared norm disagree.
        """
        upstream = decoder_tensors(state_dict, heads)
        with torch.device("meta"):
            decoder = cls(DecoderConfig(**asdict(upstream.spec)))
        decoder.load_state_dict({name: t.clone() for name, t in upstream.tensors.items()}, strict=True, assign=True)
        return decoder


def _collapse(memory: Any, lengths: Tensor, row_count: Tensor | None) -> tuple[Tensor, Tensor]:
    if row_count is not None or not isinstance(memory, Tensor):
        raise UserError(
            "SimRDecoder: lengths describes a plain memory [M, P, D]; with row_count or a projected memory the row "
            "counts are already there, so leave lengths out."
        )
    if lengths.ndim != 1 or lengths.shape[0] != memory.shape[0]:
        raise UserError(
            f"SimRDecoder: lengths must hold one number for each of the {memory.shape[0]} memories, got shape "
            f"{tuple(lengths.shape)}."
        )
    rows = memory.shape[1]
    kept = rows
    if lengths.numel() and not torch.compiler.is_compiling():
        # one read from the device, for far fewer rows
        shortest, longest = (int(value) for value in lengths.aminmax())
        if shortest < 0 or longest > rows:
            raise UserError(
                f"SimRDecoder: lengths must lie between 0 and P = {rows}, got values from {shortest} to {longest}."
            )
        kept = min(rows, longest + 1)
    lengths = lengths.to(memory.device, torch.int64)
    zero_row = torch.arange(kept, device=memory.device) >= lengths.unsqueeze(1)
    return memory[:, :kept].masked_fill(zero_row.unsqueeze(-1), 0.0), collapsed_counts(lengths, kept, rows)


def _compute_dtype(queries: Tensor) -> torch.dtype:
    """What the op computes in: the inputs' dtype, or autocast's."""
    kind = queries.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
