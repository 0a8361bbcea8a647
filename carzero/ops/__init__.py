"""The all-pairs cross-attention similarity op; needs torch and numpy alone.

from carzero.ops import DecoderSpec, DecoderWeights, pair_logits
weights = DecoderWeights.random(DecoderSpec())
logits = pair_logits(memory, queries, weights)     # [M, P, 768], [Q, 768] -> [M, Q]
"""

from __future__ import annotations

from .backends import BACKENDS, available, choose, choose_recompute
from .functional import pack_weights, pair_attention, pair_logits, pair_simr, project_memory
from .heads import pair_attention_heads
from .packing import PackCache, PackedWeights, ProjectedMemory
from .spec import DecoderSpec, DecoderWeights

__all__ = [
    "BACKENDS",
    "DecoderSpec",
    "DecoderWeights",
    "PackCache",
    "PackedWeights",
    "ProjectedMemory",
    "available",
    "choose",
    "choose_recompute",
    "pack_weights",
    "pair_attention",
    "pair_attention_heads",
    "pair_logits",
    "pair_simr",
    "project_memory",
]
