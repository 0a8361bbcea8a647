"""One native product with its operands and its float64 truth."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def as_operand(native: ModuleType, x: np.ndarray, operand: str) -> tuple[np.ndarray, np.ndarray]:
    """x as the product takes it (float32, or bf16 bits) and the same values in float64."""
    if operand == "f32":
        return x, x.astype(np.float64)
    bits = native.float_to_bf16(x).reshape(x.shape)
    return bits, widened(bits).astype(np.float64)


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def aligned_bytes(count: int, fill: int = 0) -> np.ndarray:
    raw = np.full(count + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


def packed(native: ModuleType, b: np.ndarray, type: str, operand: str, isa: str) -> np.ndarray:
    # poisoned: every byte must be written
    out = aligned_bytes(native.packed_bytes(*b.shape, operand), 0xFF)
    native.pack_b(b, type, operand, out, 0, b.shape[1], isa)
    return out


def product(
    native: ModuleType,
    a: np.ndarray,
    b: np.ndarray,
    operand: str,
    isa: str,
    type: str = "f32",
    split: int | None = None,
) -> np.ndarray:
    """a b with c poisoned; columns in pieces of `split`."""
    N = b.shape[1]
    p = packed(native, b, type, operand, isa)
    c = np.full((a.shape[0], N), np.nan, np.float32)
    step = split or max(N, 1)
    for n0 in range(0, N, step):
        native.gemm(a, p, N, operand, c, False, n0, min(n0 + step, N), isa)
    return c


def error(result: np.ndarray, truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Largest error over what rounding may do to a sum of K products: |a| |b|, element by element."""
    scale = np.abs(a) @ np.abs(b)
    return float(np.max(np.abs(result - truth) / np.maximum(scale, 1e-30), initial=0.0))
