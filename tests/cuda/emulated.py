"""The CUDA kernels run on the CPU: `csrc/cuda/emulated.cpp` through ctypes, and what they must equal in float64."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from carzero.ops.masks import PairMasks
from carzero.ops.rng import keep_scale, threshold

ROOT = Path(__file__).resolve().parents[2]


class Device(NamedTuple):
    """`carzero::cuda::Device`: bytes of shared memory that a block may have, multiprocessors, whether it has wgmma."""

    shared: int
    multiprocessors: int
    wgmma: bool = False


#: A100; H100, and as if it had no wgmma, which is how its other kernels and those of a B200 run.
SM80, SM90, SM90_MMA = Device(166912, 108), Device(232448, 132, True), Device(232448, 132)


class Dropout(Structure):
    """`carzero::cuda::Dropout`."""

    _fields_ = [
        ("seed", c_void_p), ("memory_index", c_void_p), ("query_index", c_void_p), ("query_memory", c_int64),
        ("threshold", c_uint32), ("keep", c_float), ("layer", c_int32), ("direction", c_int32),
    ]  # fmt: skip


class ForwardCall(Structure):
    """`carzero::cuda::ForwardCall`."""

    _fields_ = [
        ("q", c_void_p), ("q_memory", c_int64), ("q_row", c_int64), ("k", c_void_p), ("v", c_void_p),
        ("kv_memory", c_int64), ("kv_row", c_int64), ("out", c_void_p), ("out_memory", c_int64), ("out_row", c_int64),
        ("out_float", c_bool), ("logsumexp", c_void_p), ("maps", c_void_p), ("count", c_void_p),
        ("key_bias", c_void_p), ("memories", c_int32), ("queries", c_int32), ("rows", c_int32), ("heads", c_int32),
        ("width", c_int32), ("scale", c_float), ("splits", c_int32), ("resident", c_int32), ("group_tiles", c_int32),
        ("stages", c_int32), ("dropout", Dropout),
    ]  # fmt: skip


class BackwardCall(Structure):
    """`carzero::cuda::BackwardCall`."""

    _fields_ = [
        ("q", c_void_p), ("q_memory", c_int64), ("q_row", c_int64), ("k", c_void_p), ("v", c_void_p),
        ("kv_memory", c_int64), ("kv_row", c_int64), ("out", c_void_p), ("d_out", c_void_p), ("out_memory", c_int64),
        ("out_row", c_int64), ("logsumexp", c_void_p), ("delta", c_void_p), ("d_q", c_void_p), ("dq_memory", c_int64),
        ("dq_row", c_int64), ("d_k", c_void_p), ("d_v", c_void_p), ("dkv_memory", c_int64), ("dkv_row", c_int64),
        ("count", c_void_p), ("memories", c_int32), ("queries", c_int32), ("rows", c_int32), ("heads", c_int32),
        ("width", c_int32), ("scale", c_float), ("splits", c_int32), ("chunk_rows", c_int32),
        ("query_groups", c_int32), ("dropout", Dropout),
    ]  # fmt: skip


class Run(Structure):
    """What a test tells the emulation and learns from it."""

    _fields_ = [
        ("shared_bytes", c_int64), ("multiprocessors", c_int32), ("f16", c_int32), ("reverse", c_int32),
        ("eager", c_int32), ("absorbed", c_int32), ("wgmma", c_int32), ("variant", c_int32),
        ("blocks", c_int64), ("threads", c_int64), ("shared", c_int64), ("products", c_int64), ("conflicts", c_int64),
    ]  # fmt: skip


def load() -> ctypes.CDLL:
    """The library; skips where it was not built."""
    pattern = "build/cmake-*/libcarzero_cuda_emulated.so"
    found = sorted(ROOT.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip(f"cuda: no emulation of the kernels at {pattern}; it is built with the native extension")
    library = ctypes.CDLL(str(found[-1]))
    for name, call in (("forward", ForwardCall), ("backward", BackwardCall)):
        function = getattr(library, f"carzero_emulated_{name}")
        function.restype, function.argtypes = c_char_p, [POINTER(call), POINTER(Run)]
    library.carzero_chunk_offset.restype = c_uint32
    library.carzero_kept_block.restype = c_uint32
    library.carzero_kept_block.argtypes = [
        c_int64, c_int32, c_int32, c_int32, c_uint32, c_uint32, c_uint32, c_int32,
    ]  # fmt: skip
    library.carzero_range_bits.restype = c_uint32
    library.carzero_pack.restype, library.carzero_pack.argtypes = c_uint32, [c_int32, c_float, c_float]
    library.carzero_unpack.restype, library.carzero_unpack.argtypes = c_float, [c_int32, c_uint32]
    library.carzero_sizeof_forward_call.restype = library.carzero_sizeof_backward_call.restype = c_int64
    assert library.carzero_sizeof_forward_call() == ctypes.sizeof(ForwardCall)
    assert library.carzero_sizeof_backward_call() == ctypes.sizeof(BackwardCall)
    return library


@dataclass(frozen=True)
class Drop:
    """Attention dropout of a call; indices are global."""

    p: float
    seed: Tensor
    memory: Tensor
    query: Tensor
    columns: int
    layer: int = 2
    direction: int = 1

    @classmethod
    def draw(cls, m: int, q: int, columns: int, p: float = 0.3, shared: bool = True) -> Drop:
        """Indices that need their upper bits dropped; the queries of all memories the same, or each its own."""
        query = torch.arange(q).flip(0).unsqueeze(0) * 3 + 2**33 + 5
        if not shared:
            query = query + 1000 * torch.arange(m).unsqueeze(1)
        return cls(p, torch.tensor([-7 * 2**34 + 11]), torch.arange(m) * 5 + 70000, query.contiguous(), columns)

    def multipliers(self, heads: int, rows: int, count: Tensor | None) -> Tensor:
        """float64 ``[m, H, Q, P]``."""
        masks = PairMasks(
            self.memory.unsqueeze(1), self.query, self.columns, self.seed, self.p, self.direction, torch.float64
        )
        return masks.attention(self.layer, heads, rows, count)

    def pointers(self) -> Dropout:
        return Dropout(
            self.seed.data_ptr(), self.memory.data_ptr(), self.query.data_ptr(),
            self.query.shape[1] if self.query.shape[0] > 1 else 0, threshold(self.p), keep_scale(self.p), self.layer,
            self.direction,
        )  # fmt: skip


def forward(
    library: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    count: Tensor | None = None,
    drop: Drop | None = None,
    maps: bool = False,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    absorbed: bool = False,
    float_out: bool = False,
    device: Device = SM80,
    reverse: bool = False,
    eager: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Run]:
    """Output ``[m, Q, D]``, log-sum-exps ``[m, H, Q]``, maps ``[m, Q, P]`` and facts; what is not written is NaN."""
    m, (_, n, d) = k.shape[0], q.shape
    rows = k.shape[1] // heads if absorbed else k.shape[1]
    width = d if absorbed else d // heads
    assert k.stride() == v.stride()
    assert k.stride(-1) == q.stride(-1) == 1
    out = torch.full((m, n, d), torch.nan, dtype=torch.float32 if float_out else q.dtype)
    lse, found = torch.full((m, heads, n), torch.nan), torch.full((m, n, rows), torch.nan)
    call = ForwardCall(
        q.data_ptr(), q.stride(0) if q.shape[0] == m else 0, q.stride(1), k.data_ptr(), v.data_ptr(), k.stride(0),
        k.stride(1), out.data_ptr(), out.stride(0), out.stride(1), float_out, None if absorbed else lse.data_ptr(),
        found.data_ptr() if maps else None, None if count is None else count.data_ptr(),
        None if key_bias is None else key_bias.data_ptr(), m, n, rows, heads, width,
        width**-0.5 if scale is None else scale,
    )  # fmt: skip
    if drop is not None:
        call.dropout = drop.pointers()
    run = Run(*device[:2], q.dtype == torch.float16, reverse, eager, absorbed, device.wgmma)
    wrong = library.carzero_emulated_forward(byref(call), byref(run))
    assert wrong is None, wrong.decode()
    return out, lse, found, run


def backward(
    library: ctypes.CDLL,
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    d_kv: Tensor,
    *,
    count: Tensor | None = None,
    drop: Drop | None = None,
    device: Device = SM80,
    reverse: bool = False,
    eager: bool = False,
) -> tuple[Tensor, list[Run]]:
    """Gradient of q ``[m, Q, D]``; adds those of k and v to ``d_kv [m, P, 2, D]``. Facts of one or two kernels."""
    (m, rows, _), (_, n, d) = k.shape, q.shape
    width = d // heads
    delta = torch.full((m, heads, n), torch.nan)
    d_q = torch.full((m, n, d), torch.nan)
    assert out.stride() == d_out.stride()
    d_k, d_v = d_kv.unbind(2)
    call = BackwardCall(
        q.data_ptr(), q.stride(0) if q.shape[0] == m else 0, q.stride(1), k.data_ptr(), v.data_ptr(), k.stride(0),
        k.stride(1), out.data_ptr(), d_out.data_ptr(), out.stride(0), out.stride(1), lse.data_ptr(), delta.data_ptr(),
        d_q.data_ptr(), d_q.stride(0), d_q.stride(1), d_k.data_ptr(), d_v.data_ptr(), d_k.stride(0), d_k.stride(1),
        None if count is None else count.data_ptr(), m, n, rows, heads, width, width**-0.5,
    )  # fmt: skip
    if drop is not None:
        call.dropout = drop.pointers()
    runs = (Run * 2)(*(Run(*device[:2], q.dtype == torch.float16, reverse, eager, False, device.wgmma) for _ in "qk"))
    wrong = library.carzero_emulated_backward(byref(call), runs)
    assert wrong is None, wrong.decode()
    return d_q, [run for run in runs if run.threads]


def by_heads(x: Tensor, heads: int) -> Tensor:
    """``[m, R, D]`` as ``[m, H, R, K]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def truth(
    q: Tensor, k: Tensor, v: Tensor, heads: int, count: Tensor | None = None, drop: Drop | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exps and head-averaged weights in float64."""
    q, k, v = (by_heads(x.double(), heads) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return finish(scores, v, heads, count, drop)


def finish(
    scores: Tensor, v: Tensor, heads: int, count: Tensor | None, drop: Drop | None
) -> tuple[Tensor, Tensor, Tensor]:
    """From scores ``[m, H, Q, P]`` on, as `truth`; values ``[m, H, P, K]``."""
    if count is not None:
        absent = (count == 0)[:, None, None]
        scores = scores.masked_fill(absent, -torch.inf) + count.double().clamp(min=1).log()[:, None, None]
        v = v.masked_fill((count == 0)[:, None, :, None], 0.0)
    lse = scores.logsumexp(-1)
    weights = torch.where(lse.isneginf().unsqueeze(-1), 0.0, (scores - lse.unsqueeze(-1)).exp()).nan_to_num(0.0)
    lse = torch.where(lse.isneginf(), torch.inf, lse)
    used = weights if drop is None else weights * drop.multipliers(heads, scores.shape[-1], count)
    return (used @ v).transpose(1, 2).flatten(2), lse, weights.mean(1)


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int, count: Tensor | None = None, drop: Drop | None = None) -> Tensor:
    """What plain torch gets in the inputs' dtype: scores and softmax in float32, 16-bit operands and result."""
    dtype = q.dtype
    q, k, v = (by_heads(x, heads) for x in (q, k, v))
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if count is not None:
        scores = scores.masked_fill((count == 0)[:, None, None], -torch.inf)
        scores = scores + count.float().clamp(min=1).log()[:, None, None]
        v = v.masked_fill((count == 0)[:, None, :, None], 0.0)
    a = torch.softmax(scores, -1).nan_to_num(0.0)
    if drop is not None:
        a = a * drop.multipliers(heads, a.shape[-1], count).float()
    return (a.to(dtype).float() @ v.float()).to(dtype).transpose(1, 2).flatten(2)


def relative(ours: Tensor, exact: Tensor) -> float:
    """Relative L2 error."""
    size = torch.linalg.vector_norm(exact)
    difference = torch.linalg.vector_norm(ours.double() - exact.double())
    return float(difference / size if size > 0 else difference)
