"""The published decoder as its users run it, in plain torch modules: what the op is compared with.

Written from the published model's description (nn.MultiheadAttention with its default slow path, nn.LayerNorm, one
norm in three places); without dropout, since it would draw other masks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from carzero.ops import DecoderWeights


class PublishedLayer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm2, self.norm3 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, t: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        o, attention = self.attention(self.norm2(t), m, m)
        t = t + o
        return t + self.linear2(torch.relu(self.linear1(self.norm3(t)))), attention


class PublishedDecoder(nn.Module):
    """Logits ``[M, Q]``, representations ``[M, Q, D]`` and maps ``[L, M, Q, P]`` of plain memories."""

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype) -> None:
        super().__init__()
        s = weights.spec
        self.norm = nn.LayerNorm(s.width, eps=s.eps)
        self.layers = nn.ModuleList(PublishedLayer(s.width, s.heads, s.ffn, s.eps) for _ in range(s.layers))
        widths = s.head_widths()
        head: list[nn.Module] = [nn.Linear(i, o) for i, o in pairwise(widths)]
        for index in range(len(head) - 1, 0, -1):
            head.insert(index, nn.ReLU())
        self.head = nn.Sequential(*head)
        self.to(dtype)
        with torch.no_grad():
            for parameter, value in zip(self.in_order(), weights.flat(), strict=True):
                parameter.copy_(value)

    def in_order(self) -> list[nn.Parameter]:
        """Parameters in the op's order."""
        found = [self.norm.weight, self.norm.bias]
        for layer in self.layers:
            a = layer.attention
            found += [a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias]
            for module in (layer.linear1, layer.linear2, layer.norm2, layer.norm3):
                found += [module.weight, module.bias]
        return [*found, *self.head.parameters()]

    def forward(self, memory: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self.norm(memory).transpose(0, 1)
        t = self.norm(queries).unsqueeze(1).repeat(1, memory.shape[0], 1)
        maps = []
        for layer in self.layers:
            t, attention = layer(t, m)
            maps.append(attention)
        simr = self.norm(t)
        return self.head(simr).squeeze(-1).T, simr.transpose(0, 1), torch.stack(maps)
