"""The decoder as its users have it today: nn.MultiheadAttention, nn.Dropout, one query row per pair.

This is the baseline that speeds are compared with, not a backend. Structure and names follow the published code's final
model (`pretrain_llm_dqn_wo_self_atten_mlp_gl`), without its dead self-attention.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from carzero.ops.spec import DecoderSpec, DecoderWeights


class PublishedLayer(nn.Module):
    """Cross-attention and feed-forward network, each behind its LayerNorm."""

    def __init__(self, spec: DecoderSpec, dropout: float) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(spec.width, spec.heads, dropout=dropout)
        self.linear1 = nn.Linear(spec.width, spec.ffn)
        self.linear2 = nn.Linear(spec.ffn, spec.width)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.norm3 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.dropout = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)

    def forward(self, t: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x, attention = self.multihead_attn(self.norm2(t), memory, memory)
        t = t + self.dropout2(x)
        y = self.linear2(self.dropout(torch.relu(self.linear1(self.norm3(t)))))
        return t + self.dropout3(y), attention


class PublishedDecoder(nn.Module):
    """Logits of every (memory, query) pair, all pairs and attention maps materialised.

    Args:
        weights: copied into the module, which takes their dtype.
        dropout: of every site; active in training mode, drawn from torch's own generator.
    """

    def __init__(self, weights: DecoderWeights, dropout: float = 0.1) -> None:
        super().__init__()
        spec = weights.spec
        self.decoder_norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.layers = nn.ModuleList(PublishedLayer(spec, dropout) for _ in range(spec.layers))
        self.dropout_feas = nn.Dropout(dropout)
        widths = spec.head_widths()
        head: list[nn.Module] = []
        for index, (inner, outer) in enumerate(pairwise(widths)):
            head.append(nn.Linear(inner, outer))
            if index < len(widths) - 2:
                head += [nn.ReLU(), nn.Dropout(dropout)]
        self.mlp_head = nn.Sequential(*head)
        self.to(weights.norm_weight.dtype)
        self._copy(weights)

    def forward(self, memory: Tensor, queries: Tensor) -> Tensor:
        """Logits ``[M, Q]`` of memory ``[M, P, D]`` and queries ``[Q, D]``."""
        m = self.decoder_norm(memory).transpose(0, 1)
        t = self.decoder_norm(queries).unsqueeze(1).repeat(1, memory.shape[0], 1)
        maps = []
        for layer in self.layers:
            t, attention = layer(t, m)
            maps.append(attention)
        return self.mlp_head(self.dropout_feas(self.decoder_norm(t))).squeeze(-1).transpose(0, 1)

    @torch.no_grad()
    def _copy(self, weights: DecoderWeights) -> None:
        self.decoder_norm.weight.copy_(weights.norm_weight)
        self.decoder_norm.bias.copy_(weights.norm_bias)
        for layer, tensors in zip(self.layers, weights.layers):
            # registered in the op's order: attention's in- and out-projection, then as named in __init__
            for target, source in zip(layer.parameters(), tensors, strict=True):
                target.copy_(source)
        linears = [module for module in self.mlp_head if isinstance(module, nn.Linear)]
        for linear, weight, bias in zip(linears, weights.head[::2], weights.head[1::2]):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
