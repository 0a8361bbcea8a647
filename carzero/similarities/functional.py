"""The public functions: they check their arguments and call the registered op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.ops.call import autocast_dtype
from carzero.ops.validation import check_devices, check_dtype

# torch.ops.carzero.similarity is defined there
from . import registration


def word_region(
    memory: Tensor,
    queries: Tensor,
    *,
    row_count: Tensor | None = None,
    token_count: Tensor | None = None,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    over_words: bool = True,
    mean: bool = False,
    backend: str = "auto",
    tile_scores: int | None = None,
) -> Tensor:
    """GLoRIA's attention similarity of image regions (memory) and words (queries).

    *Equivalent to*::

        s = einsum("mpd,qtd->mqtp", memory, queries)
        s = s.softmax(2)                                    # over words; only with over_words
        c = (attention_scale * s).softmax(3) @ memory       # [M, Q, T, D]
        out = log(exp(word_scale * cosine(c, queries)).sum(2))

    Args:
        memory: ``[M, P, D]`` float64, float32, bfloat16 or float16.
        queries: ``[Q, T, D]``, the memory's dtype. Under autocast both are cast to its dtype.
        row_count: int32 ``[M, P]``: 0 absent, whatever the row holds; 1 itself; n: it stands for n equal rows. Default:
            all 1.
        token_count: int32 ``[Q, T]``, the same for tokens.
        attention_scale: 1 / tau_1 of the paper; temp1 of the public code.
        word_scale: 1 / tau_2; temp2. The loss's own scale (temp3) is left to the caller.
        over_words: as the public code (after AttnGAN) normalises scores over words before regions; the paper's equation
            is False.
        mean: log of the mean over words in place of the sum; the public code's agg.
        backend: ``"auto"``, ``"torch"`` or ``"reference"``; `max_sim` also has ``"triton"``.
        tile_scores: M P Q T numbers in flight; default by device. Bounds the workspace only.

    Returns:
        ``[M, Q]``; the inputs' dtype, float32 under autocast. 0 where a memory has no row or a query no token.

    Raises:
        ValueError, TypeError: an argument breaks a rule above.
        RuntimeError: the backend that was asked for cannot run this call.

    Source: Huang et al., "GLoRIA" (ICCV 2021) section 3.2; public file ``gloria/loss/gloria_loss.py``.
    """
    constants = [attention_scale, word_scale, float(over_words), float(mean)]
    return _call("word_region", memory, queries, row_count, token_count, None, constants, backend, tile_scores)


def max_sim(
    memory: Tensor,
    queries: Tensor,
    *,
    row_count: Tensor | None = None,
    token_count: Tensor | None = None,
    normalise: bool = True,
    mean: bool = True,
    backend: str = "auto",
    tile_scores: int | None = None,
) -> Tensor:
    """Late interaction: each token's best row, averaged over tokens (FILIP) or summed (ColBERT).

    *Equivalent to*::

        s = einsum("mpd,qtd->mqtp", normalize(memory), normalize(queries))
        out = s.amax(3).mean(2)

    FILIP's other direction is the same function with the two sides exchanged.

    Args:
        memory, queries, row_count, token_count, tile_scores: as in `word_region`.
        backend: as in `word_region`, or ``"triton"``: kernels for CUDA devices that write no scores, for float32,
            bfloat16 and float16. They are not measured yet, so ``"auto"`` does not take them.
        normalise: cosines; False: plain products.
        mean: over the tokens that are there; False: sum.

    Returns:
        ``[M, Q]``, as `word_region`. Rows that tie for the best share its gradient; by backend ``"triton"`` the first
        of them gets it.

    Source: Yao et al., "FILIP" (ICLR 2022) equations 4-5; Khattab and Zaharia, "ColBERT" (SIGIR 2020) equation 3.
    """
    constants = [float(normalise), float(mean)]
    return _call("max_sim", memory, queries, row_count, token_count, None, constants, backend, tile_scores)


def vl_cabs(
    memory: Tensor,
    queries: Tensor,
    *,
    row_count: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    backend: str = "auto",
    tile_scores: int | None = None,
) -> Tensor:
    """RadZero's VL-CABS: cosine of a text and of what it attends to in an image by cosines.

    *Equivalent to*::

        m, q = normalize(memory), normalize(queries)
        c = (einsum("mpd,qd->mqp", m, q) / temperature).softmax(2) @ m
        out = cosine(c, q)

    Args:
        memory, row_count, backend, tile_scores: as in `word_region`.
        queries: ``[Q, D]``.
        temperature: of the attention, above 0; a tensor of one element gets a gradient.

    Returns:
        ``[M, Q]`` cosines, as `word_region`; the loss divides them by its own temperature.

    Source: Park et al., "RadZero" (NeurIPS 2025) section 3.2; public file ``exp/cxr_pt/model/losses.py``.
    """
    function = "vl_cabs"
    if queries.dim() != 2:
        raise ValueError(f"{function}: queries must be [Q, D], got queries.shape={tuple(queries.shape)}.")
    if not isinstance(temperature, Tensor):
        if not temperature > 0.0:
            raise ValueError(f"{function}: temperature must be above 0, got {temperature}.")
        wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
        temperature = torch.full((1,), temperature, dtype=wide, device=queries.device)
    elif temperature.numel() != 1:
        raise ValueError(
            f"{function}: temperature must be a number or a tensor of one element, got shape "
            f"{tuple(temperature.shape)}."
        )
    queries = queries.unsqueeze(1)
    return _call(function, memory, queries, row_count, None, temperature.reshape(1), [], backend, tile_scores)


def cosine(memory: Tensor, queries: Tensor) -> Tensor:
    """Cosines of global vectors: ``normalize(memory) @ normalize(queries).T``; one GEMM, of plain torch.

    Args:
        memory: ``[M, D]``.
        queries: ``[Q, D]``, the memory's dtype.

    Returns:
        ``[M, Q]``.

    Raises:
        ValueError: the widths differ, or a shape has another number of axes.
    """
    if memory.dim() != 2 or queries.dim() != 2 or memory.shape[1] != queries.shape[1]:
        raise ValueError(
            f"cosine: memory and queries must be [M, D] and [Q, D] of the same width, got memory.shape="
            f"{tuple(memory.shape)} and queries.shape={tuple(queries.shape)}."
        )
    return F.normalize(memory, dim=-1) @ F.normalize(queries, dim=-1).T


def _call(
    kind: str, memory: Tensor, queries: Tensor, row_count: Tensor | None, token_count: Tensor | None,
    temperature: Tensor | None, constants: list[float], backend: str, tile_scores: int | None,
) -> Tensor:  # fmt: skip
    if memory.dim() != 3 or memory.shape[1] < 1:
        raise ValueError(
            f"{kind}: memory must be [M, P, D] with P of 1 or more, got memory.shape={tuple(memory.shape)}."
        )
    if queries.dim() != 3 or queries.shape[1] < 1:
        raise ValueError(f"{kind}: queries must be [Q, T, D] with T of 1 or more, got {tuple(queries.shape)}.")
    if memory.shape[2] != queries.shape[2]:
        raise ValueError(
            f"{kind}: memory and queries must have the same width D, got memory.shape={tuple(memory.shape)} and "
            f"queries.shape={tuple(queries.shape)}."
        )
    others = {"queries": queries, "row_count": row_count, "token_count": token_count, "temperature": temperature}
    check_devices(kind, memory, others)
    check_dtype(kind, "memory", memory)
    if autocast_dtype(memory.dtype, memory.device) != autocast_dtype(queries.dtype, queries.device):
        raise TypeError(
            f"{kind}: memory and queries must have the same dtype, got {memory.dtype} and {queries.dtype}. Cast one of "
            "them, or call under torch.autocast."
        )
    for name, count, rows in (("row_count", row_count, memory), ("token_count", token_count, queries)):
        if count is not None and (count.dtype != torch.int32 or count.shape != rows.shape[:2]):
            raise ValueError(
                f"{kind}: {name} must be int32 of shape {tuple(rows.shape[:2])}, got {count.dtype} of shape "
                f"{tuple(count.shape)}."
            )
    if tile_scores is not None and tile_scores < 1:
        raise ValueError(f"{kind}: tile_scores must be a positive number of scores or None, got {tile_scores}.")
    # whether it can run this call shows on real tensors, inside the op
    registration.check_backend(backend)
    # an absent row may hold anything
    memory = memory if row_count is None else memory.masked_fill((row_count == 0).unsqueeze(-1), 0.0)
    queries = queries if token_count is None else queries.masked_fill((token_count == 0).unsqueeze(-1), 0.0)
    return torch.ops.carzero.similarity(
        memory, queries, row_count, token_count, temperature, kind, constants, False, backend, tile_scores or 0
    )
