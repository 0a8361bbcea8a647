"""Decoders as other repositories have them, in plain torch modules: what the drop-in is compared with.

Written from the published modules' descriptions: class names and parameter names are theirs, since those are what
`carzero.patch` reads.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.activation = F.relu
        self.normalize_before = True

    def after_self_attention(self, t: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        o, attention = self.multihead_attn(self.norm2(t), memory, memory)
        t = t + self.drop(o)
        h = self.drop(self.activation(self.linear1(self.norm3(t))))
        return t + self.drop(self.linear2(h)), attention


class TransformerDecoderWoSelfAttenLayer(_Layer):
    """CARZero's and VECL's: it owns a self-attention and never calls it."""

    def forward(self, t: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.after_self_attention(t, memory)


class TransformerDecoderLayer(_Layer):
    """KAD's and MedKLIP's, and of CARZero's variant with self-attention."""

    def forward(self, t: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(t)
        t = t + self.drop(self.self_attn(x, x, x)[0])
        return self.after_self_attention(t, memory)


class TransformerDecoder(nn.Module):
    def __init__(self, layers: list[nn.Module], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(self, t: Tensor, memory: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for layer in self.layers:
            t, attention = layer(t, memory)
            maps.append(attention)
        return self.norm(t), maps


class Fusion(nn.Module):
    """A published fusion module; `outputs` 3 is VECL's."""

    def __init__(
        self, layer: type = TransformerDecoderWoSelfAttenLayer, *, width: int = 32, outputs: int = 1, mlp: bool = True,
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder = TransformerDecoder([layer(width, 4, 48, dropout) for _ in range(2)], self.decoder_norm)
        self.dropout_feas = nn.Dropout(dropout)
        widths = (width, 40, 24, 16) if mlp else (width,)
        parts: list[nn.Module] = []
        for i, o in itertools.pairwise(widths):
            parts += [nn.Linear(i, o), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.mlp_head = nn.Sequential(*parts, nn.Linear(widths[-1], outputs))
        # biases and norms start at 0 and 1, where a mistake would not show
        for p in self.parameters():
            p.data += 0.1 * p.new_empty(p.shape).normal_()

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        pos=None,
        return_atten=False,
        inside_repeat=True,
        use_MLP=True,
    ):
        memory = self.decoder_norm(image_features.transpose(0, 1))
        if inside_repeat:
            text_features = text_features.unsqueeze(1).repeat(1, image_features.shape[0], 1)
        t, maps = self.decoder(self.decoder_norm(text_features), memory)
        out = self.dropout_feas(t).transpose(0, 1)
        out = self.mlp_head(out) if use_MLP else out
        return (out, maps) if return_atten else out
