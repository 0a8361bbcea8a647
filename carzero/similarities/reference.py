"""The similarities as the papers write them, on all pairs at once: the oracle.

Letters: memory v [M, P, D], queries w [Q, T, D], counts n of rows [M, P] and of tokens [Q, T]; float64 stays float64,
all else is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def word_region(
    v: Tensor, w: Tensor, rows: Tensor, tokens: Tensor, attention_scale: float, word_scale: float, over_words: bool,
    mean: bool,
) -> Tensor:  # fmt: skip
    """GLoRIA (ICCV 2021) equations 1-4; with `over_words` the scores are first normalised as in AttnGAN equation 8."""
    s = torch.einsum("mpd,qtd->mqtp", v, w)
    if over_words:
        s = _softmax(s, tokens[None, :, :, None], 2)
    a = rows[:, None, None, :] * _softmax(attention_scale * s, rows[:, None, None, :], 3)
    c = torch.einsum("mqtp,mpd->mqtd", a, v)
    # as the public code: the product of the norms is kept from 0, not each norm
    r = (c * w).sum(-1) / (c.norm(dim=-1) * w.norm(dim=-1)).clamp(min=1e-8)
    z = (tokens * torch.exp(word_scale * r)).sum(-1)
    z = z / tokens.sum(-1).clamp(min=1) if mean else z
    there = (rows.sum(1)[:, None] > 0) & (tokens.sum(1) > 0)
    return torch.log(torch.where(there, z, 1.0))


def max_sim(v: Tensor, w: Tensor, rows: Tensor, tokens: Tensor, normalise: bool, mean: bool) -> Tensor:
    """FILIP (ICLR 2022) equations 4-5 with the mean; ColBERT (SIGIR 2020) equation 3 with the sum."""
    if normalise:
        v, w = F.normalize(v, dim=-1), F.normalize(w, dim=-1)
    s = torch.einsum("mpd,qtd->mqtp", v, w)
    s = s.masked_fill((rows == 0)[:, None, None, :], -torch.inf)
    best = s.amax(-1).masked_fill((rows.sum(1) == 0)[:, None, None], 0.0)
    total = (tokens * best).sum(-1)
    return total / tokens.sum(-1).clamp(min=1) if mean else total


def vl_cabs(v: Tensor, w: Tensor, rows: Tensor, temperature: Tensor) -> Tensor:
    """RadZero (NeurIPS 2025) section 3.2: attention by cosines, then a cosine with what it gives; w [Q, D]."""
    v, w = F.normalize(v, dim=-1), F.normalize(w, dim=-1)
    a = rows[:, None, :] * _softmax(torch.einsum("mpd,qd->mqp", v, w) / temperature, rows[:, None, :], 2)
    return (F.normalize(torch.einsum("mqp,mpd->mqd", a, v), dim=-1) * w).sum(-1)


def _softmax(s: Tensor, count: Tensor, axis: int) -> Tensor:
    """Softmax over elements that stand for n each: what one of the n gets; 0 where there is none."""
    s = s.masked_fill(count == 0, -torch.inf)
    e = torch.exp(s - s.amax(axis, keepdim=True).clamp(min=torch.finfo(s.dtype).min).detach())
    return e / (count * e).sum(axis, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
