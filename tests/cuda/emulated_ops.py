"""`torch.ops.carzero_cuda` on CPU tensors, run by the emulated kernels: the whole `cuda` backend without a GPU."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass

import torch
from emulated import SM80, BackwardCall, Device, Dropout, ForwardCall, Run
from torch import Tensor

from carzero.ops import cuda
from carzero.ops.rng import keep_scale

#: The schemas of csrc/cuda/library.cpp, for where the library is not built.
_MASKS = "Tensor? seed, Tensor? memory_index, Tensor? query_index, int threshold, int layer, int direction"
_DROPOUT = f"{_MASKS}) -> ()"
SCHEMAS = (
    "attention_forward(Tensor q, Tensor k, Tensor v, int heads, float scale, Tensor? count, Tensor(a!) out, "
    f"Tensor(b!)? logsumexp, Tensor(c!)? maps, {_MASKS}, bool wgmma=True) -> ()",
    "attention_absorbed(Tensor x, Tensor keys, Tensor values, Tensor? key_bias, int heads, float scale, "
    f"Tensor? count, Tensor(a!) out, {_DROPOUT}",
    "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, int heads, "
    f"float scale, Tensor? count, Tensor(a!) delta, Tensor(b!) d_q, Tensor(c!) d_k, Tensor(d!) d_v, {_MASKS}, "
    "bool wgmma=True) -> ()",
)


@dataclass
class Registered:
    """CPU kernels of the three ops until the libraries are dropped, the device that they run as, how often each was
    called, and how often a kernel of wgmma ran."""

    libraries: list[torch.library.Library]
    calls: dict[str, int]
    device: Device = SM80


def register(emulation: ctypes.CDLL) -> Registered:
    libraries = []
    if cuda.library()[0] is None:
        define = torch.library.Library("carzero_cuda", "DEF")
        for schema in SCHEMAS:
            define.define(schema)
        libraries.append(define)
    calls = dict.fromkeys(("attention_forward", "attention_absorbed", "attention_backward", "wgmma"), 0)
    implement = torch.library.Library("carzero_cuda", "IMPL", "CPU")
    registered = Registered([*libraries, implement], calls)

    def run(kernel: str, call: ForwardCall | BackwardCall, q: Tensor, absorbed: bool = False) -> None:
        device = registered.device
        facts = (Run * 2)(
            *(Run(*device[:2], q.dtype == torch.float16, False, False, absorbed, device.wgmma) for _ in range(2))
        )
        wrong = getattr(emulation, f"carzero_emulated_{kernel}")(byref(call), facts)
        assert wrong is None, wrong.decode()
        calls["wgmma"] += sum(bool(fact.wgmma) for fact in facts if fact.threads)

    def dropout(seed, memory_index, query_index, threshold, layer, direction, queries) -> Dropout:
        if not threshold:
            return Dropout()
        assert seed.is_contiguous()
        assert memory_index.is_contiguous()
        assert query_index.is_contiguous()
        return Dropout(
            seed.data_ptr(), memory_index.data_ptr(), query_index.data_ptr(),
            0 if query_index.numel() == queries else queries, threshold, keep_scale(threshold / 65536), layer,
            direction,
        )  # fmt: skip

    def fill(q: Tensor, k: Tensor, heads: int, rows: int, width: int, scale: float, count: Tensor | None) -> tuple:
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert k.dtype == q.dtype
        assert all(s % 8 == 0 for s in (*q.stride()[:2], *k.stride()[:2]))
        assert count is None or (count.dtype == torch.int32 and count.is_contiguous())
        return (k.shape[0], q.shape[1], rows, heads, width, scale)

    def forward(q, k, v, heads, scale, count, out, logsumexp, maps, *drop, wgmma=True) -> None:
        calls["attention_forward"] += 1
        sizes = fill(q, k, heads, k.shape[1], q.shape[2] // heads, scale, count)
        call = ForwardCall(
            q.data_ptr(), 0 if q.shape[0] == 1 else q.stride(0), q.stride(1), k.data_ptr(), v.data_ptr(), k.stride(0),
            k.stride(1), out.data_ptr(), out.stride(0), out.stride(1), False, pointer(logsumexp), pointer(maps),
            pointer(count), None, *sizes,
        )  # fmt: skip
        call.dropout = dropout(*drop, q.shape[1])
        run("forward", call, q)

    def absorbed(x, keys, values, key_bias, heads, scale, count, out, *drop) -> None:
        calls["attention_absorbed"] += 1
        sizes = fill(x, keys, heads, keys.shape[1] // heads, x.shape[2], scale, count)
        assert out.dtype == key_bias.dtype == torch.float32
        call = ForwardCall(
            x.data_ptr(), 0 if x.shape[0] == 1 else x.stride(0), x.stride(1), keys.data_ptr(), values.data_ptr(),
            keys.stride(0), keys.stride(1), out.data_ptr(), out.stride(0), out.stride(1), True, None, None,
            pointer(count), pointer(key_bias), *sizes,
        )  # fmt: skip
        call.dropout = dropout(*drop, x.shape[1])
        run("forward", call, x, absorbed=True)

    def backward(d_out, q, k, v, out, logsumexp, heads, scale, count, delta, d_q, d_k, d_v, *drop, wgmma=True) -> None:
        calls["attention_backward"] += 1
        sizes = fill(q, k, heads, k.shape[1], q.shape[2] // heads, scale, count)
        assert d_out.stride() == out.stride()
        assert d_k.stride() == d_v.stride()
        assert d_k.dtype == d_q.dtype == delta.dtype == torch.float32
        call = BackwardCall(
            q.data_ptr(), 0 if q.shape[0] == 1 else q.stride(0), q.stride(1), k.data_ptr(), v.data_ptr(), k.stride(0),
            k.stride(1), out.data_ptr(), d_out.data_ptr(), out.stride(0), out.stride(1), logsumexp.data_ptr(),
            delta.data_ptr(), d_q.data_ptr(), d_q.stride(0), d_q.stride(1), d_k.data_ptr(), d_v.data_ptr(),
            d_k.stride(0), d_k.stride(1), pointer(count), *sizes,
        )  # fmt: skip
        call.dropout = dropout(*drop, q.shape[1])
        run("backward", call, q)

    for name, function in (
        ("attention_forward", forward),
        ("attention_absorbed", absorbed),
        ("attention_backward", backward),
    ):
        implement.impl(name, function)
    return registered


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
