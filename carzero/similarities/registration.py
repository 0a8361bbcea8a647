"""One registered op for the family, in tiles: forward, backward that runs each block again, fake, autocast."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from carzero.ops.backends import BACKENDS, ENVIRONMENT, available, check_name, interpreted
from carzero.ops.call import autocast_dtype, wide_dtype
from carzero.ops.prepared import gemm_dtype

from . import blocks, reference

KINDS = ("word_region", "max_sim", "vl_cabs")
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# rows of memories and scores that exist at a time: a block's scores, weights and their gradients stay in a CPU's cache
_ROWS = {"cpu": 1600}
_SCORES = {"cpu": 2**19}
_ROWS_ELSEWHERE, _SCORES_ELSEWHERE = 16384, 2**25

_INPUTS = (
    "Tensor memory, Tensor queries, Tensor? row_count, Tensor? token_count, Tensor? temperature, str kind, "
    "float[] constants, bool float32_out, str backend, SymInt tile_scores"
)
_NAMES = tuple(part.split()[-1] for part in _INPUTS.split(", "))
_library = torch.library.Library("carzero", "FRAGMENT")


def choose(backend: str, *, kind: str, device: torch.device | str, dtype: torch.dtype) -> tuple[str, str]:
    """The backend of a similarity, and why.

    Args:
        backend: a name, or ``"auto"``: the environment variable CARZERO_BACKEND, else plain torch.
        kind: ``"word_region"``, ``"max_sim"``, ``"vl_cabs"`` or ``"cosine"``.
        dtype: of memory and queries.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend was asked for, by argument or environment, that cannot run this similarity here.
    """
    check_backend(backend)
    check_name("carzero.similarities", "kind", kind, (*KINDS, "cosine"))
    asked, source = backend, f"backend={backend!r}"
    if backend == "auto":
        asked = os.environ.get(ENVIRONMENT, "").strip() or "auto"
        source = f"{ENVIRONMENT}={asked}"
        check_name("carzero.similarities", f"the environment variable {ENVIRONMENT}", asked, ("auto", *BACKENDS))
    device = torch.device(device)
    if asked == "auto":
        why = "torch: tiles of plain torch; a GEMM and a softmax or maximum leave a kernel little to fuse"
        if kind == "max_sim" and device.type == "cuda":
            able, reason = _fuses(kind, device, dtype)
            reason = "not yet measured to be faster; ask for it by name" if able else reason
            why = f"torch: tiles of plain torch; not triton: {reason}"
        return "torch", why
    if asked in ("torch", "reference"):
        return asked, "asked for" if backend != "auto" else source
    able, why = _fuses(kind, device, dtype) if asked == "triton" else (False, "runs the decoder alone")
    if able:
        return asked, "asked for" if backend != "auto" else source
    raise RuntimeError(
        f"carzero.similarities: {source} was asked for and cannot run {kind}: {why}. Use backend='torch', or 'auto', "
        "which chooses it."
    )


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is none."""
    check_name("carzero.similarities", "backend", backend, ("auto", *BACKENDS))


def _fuses(kind: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the Triton kernels can run a call, and why (not)."""
    if kind != "max_sim":
        return False, "its kernels are those of the decoder and of max_sim"
    able, why = available("triton", device)
    if able and dtype not in _FUSED_DTYPES:
        return False, f"supports float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if able and interpreted("triton", device) and dtype == torch.bfloat16:
        return False, "its interpreter multiplies the bit patterns of bfloat16"
    return able, why


def _fused(a: dict) -> tuple[ModuleType, Any]:
    """The module that runs MaxSim in Triton, which is imported only where it is wanted, and the call as it takes it."""
    module = importlib.import_module(f"{__package__}.fused")
    normalise, mean = map(bool, a["constants"])
    counts = a["row_count"], a["token_count"]
    return module, module.Call(a["memory"], a["queries"], *counts, normalise, mean, a["tile_scores"])


def _forward(*values) -> Tensor:
    a = dict(zip(_NAMES, values))
    memory, queries = a["memory"], a["queries"]
    with torch.autocast(memory.device.type, enabled=False):
        backend = _chosen(a)
        if backend == "reference":
            out = _reference(a, memory, queries, a["temperature"])
        elif backend == "triton":
            module, call = _fused(a)
            out = module.forward(call)
        else:
            out = queries.new_empty(memory.shape[0], queries.shape[0], dtype=wide_dtype(queries.dtype))
            for m, q in _tiles(a):
                out[m, q] = _block(a, m, q, memory[m], queries[q], a["temperature"])
    return out.to(_out_dtype(a))


def _backward(grad: Tensor, *values) -> list[Tensor]:
    a = dict(zip(_NAMES, values))
    memory, queries, temperature = a["memory"], a["queries"], a["temperature"]
    wide = wide_dtype(queries.dtype)
    grad = grad.to(wide)
    given = [memory, queries] if temperature is None else [memory, queries, temperature]
    with torch.autocast(memory.device.type, enabled=False):
        backend = _chosen(a)
        if backend == "triton":
            module, call = _fused(a)
            return module.backward(grad, call)
        if backend == "reference":
            _, pull, *_ = torch.func.vjp(lambda v, w, *t: _reference(a, v, w, t[0] if t else None), *given)
            return [g.contiguous() for g in pull(grad)]
        totals = [torch.zeros_like(t, dtype=wide, memory_format=torch.contiguous_format) for t in given]
        for m, q in _tiles(a):

            def run(v: Tensor, w: Tensor, *t: Tensor, m: slice = m, q: slice = q) -> Tensor:
                return _block(a, m, q, v, w, t[0] if t else None)

            _, pull, *_ = torch.func.vjp(run, memory[m], queries[q], *given[2:])
            g_memory, g_queries, *g_temperature = pull(grad[m, q])
            totals[0][m] += g_memory
            totals[1][q] += g_queries
            for total, g in zip(totals[2:], g_temperature):
                total += g
    return [total.to(t.dtype) for total, t in zip(totals, given)]


def _chosen(a: dict) -> str:
    queries = a["queries"]
    return choose(a["backend"], kind=a["kind"], device=queries.device, dtype=queries.dtype)[0]


def _tiles(a: dict) -> Iterator[tuple[slice, slice]]:
    """Slices of memories and of queries that cover every pair once."""
    (memories, rows, _), (queries, tokens, _) = a["memory"].shape, a["queries"].shape
    kind = a["memory"].device.type
    most = a["tile_scores"] or _SCORES.get(kind, _SCORES_ELSEWHERE)
    q_step = min(max(queries, 1), max(1, most // (rows * tokens)))
    m_step = max(1, min(most // (rows * tokens * q_step), _ROWS.get(kind, _ROWS_ELSEWHERE) // rows))
    for m in range(0, memories, m_step):
        for q in range(0, queries, q_step):
            yield slice(m, m + m_step), slice(q, q + q_step)


def _block(a: dict, m: slice, q: slice, v: Tensor, w: Tensor, temperature: Tensor | None) -> Tensor:
    wide, (gemm, _) = wide_dtype(a["queries"].dtype), gemm_dtype(a["queries"].dtype, w.device)
    rows, tokens = a["row_count"], a["token_count"]
    counts = blocks.Counts(None if rows is None else rows[m].to(wide), None if tokens is None else tokens[q].to(wide))
    v, w, constants = v.to(gemm), w.to(gemm), a["constants"]
    if a["kind"] == "word_region":
        return blocks.word_region(v, w, counts, *constants[:2], *map(bool, constants[2:]))
    if a["kind"] == "max_sim":
        return blocks.max_sim(v, w, counts, *map(bool, constants))
    assert temperature is not None
    return blocks.vl_cabs(v, w, counts, temperature)


def _reference(a: dict, v: Tensor, w: Tensor, temperature: Tensor | None) -> Tensor:
    wide = wide_dtype(w.dtype)
    rows, tokens = a["row_count"], a["token_count"]
    rows = v.new_ones(v.shape[:2], dtype=wide) if rows is None else rows.to(wide)
    tokens = w.new_ones(w.shape[:2], dtype=wide) if tokens is None else tokens.to(wide)
    v, w, constants = v.to(wide), w.to(wide), a["constants"]
    if a["kind"] == "word_region":
        return reference.word_region(v, w, rows, tokens, *constants[:2], *map(bool, constants[2:]))
    if a["kind"] == "max_sim":
        return reference.max_sim(v, w, rows, tokens, *map(bool, constants))
    assert temperature is not None
    return reference.vl_cabs(v, w.squeeze(1), rows, temperature.to(wide))


def _out_dtype(a: dict) -> torch.dtype:
    return wide_dtype(a["queries"].dtype) if a["float32_out"] else a["queries"].dtype


def _forward_fake(*values) -> Tensor:
    a = dict(zip(_NAMES, values))
    return a["queries"].new_empty((a["memory"].shape[0], a["queries"].shape[0]), dtype=_out_dtype(a))


def _backward_fake(grad: Tensor, *values) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (values[0], values[1], values[4]) if t is not None]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _autograd(ctx, grad: Tensor) -> tuple:
    grads = torch.ops.carzero.similarity_backward(grad, *ctx.saved_tensors, *ctx.rest)
    temperature = grads[2] if len(grads) == 3 else None
    return grads[0], grads[1], None, None, temperature, *([None] * len(ctx.rest))


def _no_second(ctx, *grads):
    raise NotImplementedError(
        "carzero.similarities: their gradient cannot be differentiated again. For second derivatives call "
        "carzero.similarities.reference, which is plain torch."
    )


def _autocast(device: str):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def cast(*values):
        a = list(values)
        a[:2] = [t.to(autocast_dtype(t.dtype, torch.device(device))) for t in a[:2]]
        a[_NAMES.index("float32_out")] = True
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return torch.ops.carzero.similarity.default(*a)

    return cast


_library.define(f"similarity({_INPUTS}) -> Tensor")
_library.define(f"similarity_backward(Tensor grad, {_INPUTS}) -> Tensor[]")
_library.impl("similarity", _forward, "CompositeExplicitAutograd")
_library.impl("similarity_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("carzero::similarity", _forward_fake, lib=_library)
torch.library.register_fake("carzero::similarity_backward", _backward_fake, lib=_library)
torch.library.register_autograd("carzero::similarity", _autograd, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("carzero::similarity_backward", _no_second, lib=_library)
for _device in ("cpu", "cuda"):
    _library.impl("similarity", _autocast(_device), f"Autocast{_device.upper()}")
