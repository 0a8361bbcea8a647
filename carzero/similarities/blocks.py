"""The same similarities on a block of memories and queries, cheaper by exact identities.

- One GEMM gives all scores s = v w of a block, ``[m, P, q T]``; everything else is made of them.
- The attended row c = sum_p a_p v_p is never made: its product with w is sum_p a_p s_p, and its squared length is
  a' G a with the Gram matrix G = v v' ``[P, P]`` of the memory, P numbers a score instead of D.

Scores multiply in the inputs' dtype, all else is wide (float32; float64 for float64).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.ops.reference import row_bias


class Counts(NamedTuple):
    """How many rows each row and how many tokens each token stands for: ``[m, P]`` and ``[q, T]``, wide; or None."""

    rows: Tensor | None
    tokens: Tensor | None


def gram_pays(queries: int, rows: int, width: int) -> tuple[bool, str]:
    """Whether lengths through a memory's Gram matrix are fewer multiply-adds than through the attended rows, and why.

    Args:
        queries: tokens of all queries that meet the memory.
    """
    gram, direct = rows * rows * (width + queries), queries * rows * width
    return (
        gram < direct,
        f"{gram / 1e6:.1f} M multiply-adds a memory with its Gram matrix, {direct / 1e6:.1f} M without",
    )


def word_region(
    v: Tensor, w: Tensor, counts: Counts, attention_scale: float, word_scale: float, over_words: bool, mean: bool
) -> Tensor:
    """``[m, q]``; see `carzero.similarities.word_region`."""
    s = _scores(v, w)
    tokens = counts.tokens
    x = s
    if over_words:
        # what each of a token's n copies gets
        x = torch.softmax(s, 3) if tokens is None else torch.softmax(s + _log(tokens), 3) / tokens.clamp(min=1)
    a = _over_rows(attention_scale * x, counts.rows)
    dot = (a * s).sum(1)
    lengths = _lengths(v, a).flatten(1) * _norm(w.to(a.dtype)).flatten()
    r = word_scale * dot / lengths.unflatten(1, dot.shape[1:]).clamp(min=1e-8)
    if tokens is None:
        out = torch.logsumexp(r, 2)
        out = out - math.log(w.shape[1]) if mean else out
    else:
        total = tokens.sum(1)
        out = torch.logsumexp(r + _log(tokens), 2)
        out = (out - torch.log(total.clamp(min=1)) if mean else out).masked_fill(total == 0, 0.0)
    return out if counts.rows is None else out.masked_fill((counts.rows.sum(1) == 0)[:, None], 0.0)


def max_sim(v: Tensor, w: Tensor, counts: Counts, normalise: bool, mean: bool) -> Tensor:
    """``[m, q]``; see `carzero.similarities.max_sim`."""
    s = _scores(*(_unit(x) if normalise else x for x in (v, w)))
    if counts.rows is not None:
        s = s.masked_fill((counts.rows == 0)[:, :, None, None], -torch.inf)
    best = s.amax(1)
    if counts.rows is not None:
        best = best.masked_fill((counts.rows.sum(1) == 0)[:, None, None], 0.0)
    if counts.tokens is None:
        return best.mean(2) if mean else best.sum(2)
    total = (best * counts.tokens).sum(2)
    return total / counts.tokens.sum(1).clamp(min=1) if mean else total


def vl_cabs(v: Tensor, w: Tensor, counts: Counts, temperature: Tensor) -> Tensor:
    """``[m, q]`` of queries ``[q, 1, D]``; see `carzero.similarities.vl_cabs`."""
    v, w = _unit(v), _unit(w)
    s = _scores(v, w)
    a = _over_rows(s / temperature.to(s.dtype), counts.rows)
    return ((a * s).sum(1) / _lengths(v, a).clamp(min=1e-12)).squeeze(2)


def _scores(v: Tensor, w: Tensor) -> Tensor:
    """``[m, P, q, T]``, wide."""
    s = v.flatten(0, 1) @ w.flatten(0, 1).T
    return _wide(s).view(*v.shape[:2], *w.shape[:2])


def _over_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Softmax over rows, which stand for n each: what all n get; 0 for a memory without any."""
    if rows is None:
        return torch.softmax(x, 1)
    return torch.softmax(x + _log(rows)[:, :, None, None], 1) * (rows.sum(1) > 0)[:, None, None, None]


def _lengths(v: Tensor, a: Tensor) -> Tensor:
    """``[m, q, T]`` lengths of the attended rows."""
    flat = a.flatten(2)
    if gram_pays(flat.shape[2], *v.shape[1:])[0]:
        gram = _wide(v) @ _wide(v).transpose(1, 2)
        square = (flat * (gram @ flat)).sum(1)
    else:
        square = (flat.transpose(1, 2) @ _wide(v)).square().sum(2)
    # a root has no gradient at 0
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt().view(a.shape[0], *a.shape[2:])


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(-1).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_wide(x), dim=-1).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _log(count: Tensor) -> Tensor:
    """log n, -inf where there is none; zeros where there is none at all, so that softmax stays finite."""
    return row_bias(count, count.dtype)[0]
