"""The matrix product against float64, on every instruction set of this build that this machine runs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from guarded import guarded
from products import aligned_bytes, as_operand, error, packed, product, widened

# float32 sums of at most 1025 products: far below K * 2^-24 = 6e-5, which chunked sums of mixed signs never reach
TOLERANCE = 2e-6

SHAPES = [
    (1, 1, 1),
    (2, 16, 8),
    (3, 2, 17),
    (5, 33, 9),
    (6, 257, 16),
    (7, 31, 40),
    (13, 192, 197),
    (14, 64, 32),
    (15, 100, 31),
    (29, 197, 192),
    (32, 768, 48),
    (63, 9, 63),
    (129, 513, 65),
    (197, 1025, 33),
    (200, 20, 257),
    (385, 48, 96),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
def test_product_equals_float64(native, isa, operand, shape, transposed):
    R, K, N = shape
    rng = np.random.default_rng(R * 1000003 + K * 1009 + N)
    a, a_true = as_operand(native, rng.standard_normal((R, K), dtype=np.float32), operand)
    b = rng.standard_normal((K, N), dtype=np.float32)
    _, b_true = as_operand(native, b, operand)
    c = product(native, a, np.asfortranarray(b) if transposed else b, operand, isa)
    assert error(c, a_true @ b_true, a_true, b_true) < TOLERANCE


@pytest.mark.parametrize("type", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("packed_as", ["f32", "bf16"])
@pytest.mark.parametrize("layout", ["rows", "transposed", "strided"])
def test_packing_places_every_element(native, isa, type, packed_as, layout):
    K, N = 45, 37
    values = np.random.default_rng(1).standard_normal((K, N)).astype(np.float32)
    if type == "bf16":
        b = native.float_to_bf16(values).reshape(K, N)
        values = widened(b)
    elif type == "f16":
        b = values.astype(np.float16).view(np.uint16)
        values = b.view(np.float16).astype(np.float32)
    else:
        b = values
    if layout == "transposed":
        b = np.asfortranarray(b)
    elif layout == "strided":
        wide = np.zeros((2 * K, 3 * N), b.dtype)
        wide[::2, ::3] = b
        b = wide[::2, ::3]
    out = packed(native, b, type, packed_as, isa)
    panels = (N + 15) // 16
    if packed_as == "f32":
        expected = np.zeros((panels, K, 16), np.float32)
        for p in range(panels):
            part = values[:, 16 * p : 16 * p + 16]
            expected[p, :, : part.shape[1]] = part
        assert np.array_equal(out.view(np.float32).reshape(expected.shape), expected)
    else:
        bits = native.float_to_bf16(values).reshape(K, N)
        expected = np.zeros((panels, (K + 31) // 32 * 16, 16, 2), np.uint16)
        for k in range(K):
            for n in range(N):
                expected[n // 16, k // 2, n % 16, k % 2] = bits[k, n]
        assert np.array_equal(out.view(np.uint16).reshape(expected.shape), expected)


def test_rows_and_columns_may_be_split_without_changing_a_bit(native, isa, operand):
    # K of several chunks on every set
    R, K, N = 211, 1100, 117
    rng = np.random.default_rng(2)
    a, _ = as_operand(native, rng.standard_normal((R, K), dtype=np.float32), operand)
    b = rng.standard_normal((K, N), dtype=np.float32)
    whole = product(native, a, b, operand, isa)
    assert np.array_equal(whole, product(native, a, b, operand, isa))
    assert np.array_equal(whole, product(native, a, b, operand, isa, split=16))
    assert np.array_equal(whole, product(native, a, b, operand, isa, split=48))
    # beyond the first cuts the pieces' tiles have other heights and edges
    for r0, r1 in [(0, 1), (1, 9), (9, 50), (50, 211)]:
        assert np.array_equal(whole[r0:r1], product(native, a[r0:r1], b, operand, isa))


@pytest.mark.parametrize("shape", [(7, 31, 21), (33, 70, 48), (17, 33, 5), (16, 32, 32), (1, 1, 1)], ids=str)
def test_accumulates_into_a_slice_and_touches_nothing_beside_it(native, isa, operand, shape):
    R, K, N = shape
    rng = np.random.default_rng(3)
    a, a_true = as_operand(native, rng.standard_normal((R, K), dtype=np.float32), operand)
    wide_a = np.full((R, K + 5), 0x7FC0 if operand == "bf16" else np.nan, a.dtype)
    wide_a[:, :K] = a
    b = rng.standard_normal((K, N), dtype=np.float32)
    _, b_true = as_operand(native, b, operand)
    canary = np.float32(1234.5)
    c = np.full((R + 2, N + 6), canary)
    start = rng.standard_normal((R, N), dtype=np.float32)
    c[1:-1, 3:-3] = start
    native.gemm(wide_a[:, :K], packed(native, b, "f32", operand, isa), N, operand, c[1:-1, 3:-3], True, 0, N, isa)
    assert error(c[1:-1, 3:-3], start + a_true @ b_true, a_true, b_true) < TOLERANCE + 1e-6
    c[1:-1, 3:-3] = canary
    assert np.all(c == canary)


@pytest.mark.parametrize("shape", [(5, 7, 3), (16, 33, 17), (31, 65, 40), (47, 257, 9)], ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_reads_and_writes_stay_inside_guarded_pages(native, isa, operand, shape, at_end):
    R, K, N = shape
    rng = np.random.default_rng(4)
    raw, a_true = as_operand(native, rng.standard_normal((R, K), dtype=np.float32), operand)
    values = rng.standard_normal((K, N), dtype=np.float32)
    _, b_true = as_operand(native, values, operand)
    a, keep_a = guarded(raw, at_end)
    c, keep_c = guarded(np.full((R, N), np.nan, np.float32), at_end)
    for layout in (values, np.ascontiguousarray(values.T)):
        b, keep_b = guarded(layout, at_end)
        size = native.packed_bytes(K, N, operand)
        out, keep_out = guarded(np.zeros(size, np.uint8), at_end)
        native.pack_b(b if layout is values else b.T, "f32", operand, out, 0, N, isa)
        native.gemm(a, out, N, operand, c, False, 0, N, isa)
        assert error(c, a_true @ b_true, a_true, b_true) < TOLERANCE
        del keep_b, keep_out
    del keep_a, keep_c


@pytest.mark.parametrize("type", ["f32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (31, 24, 40), (70, 13, 33), (257, 50, 17)], ids=str)
def test_weight_gradient_equals_float64_whatever_the_split(native, isa, operand, type, shape):
    R, N, K = shape
    rng = np.random.default_rng(5)
    y, y_true = as_operand(native, rng.standard_normal((R, N), dtype=np.float32), type)
    if operand == "bf16":
        _, y_true = as_operand(native, y_true.astype(np.float32), "bf16")
    x = rng.standard_normal((R, K), dtype=np.float32)
    _, x_true = as_operand(native, x, operand)
    p = packed(native, x, "f32", operand, isa)
    start = rng.standard_normal((N, K), dtype=np.float32)
    results = []
    y_guarded, keep_y = guarded(y)
    for bounds in ([0, N], [0, N // 3, N // 2, N]):
        c = start.copy()
        for n0, n1 in pairwise(bounds):
            # poisoned with NaN
            scratch, keep = guarded(np.full(native.tn_scratch_bytes(R, n1 - n0, operand), 0xFF, np.uint8))
            native.gemm_tn(y_guarded, type, p, K, operand, c, True, n0, n1, scratch, isa)
            del keep
        results.append(c)
    del keep_y
    assert error(results[0], start + y_true.T @ x_true, y_true.T, x_true) < TOLERANCE + 1e-6
    assert np.array_equal(results[0], results[1])


def test_empty_sizes(native, isa):
    p = aligned_bytes(native.packed_bytes(0, 5, "f32"))
    c = np.full((3, 5), np.nan, np.float32)
    native.gemm(np.zeros((3, 0), np.float32), p, 5, "f32", c, False, 0, 5, isa)
    assert np.array_equal(c, np.zeros((3, 5)))
    c[:] = 7
    native.gemm(np.zeros((3, 0), np.float32), p, 5, "f32", c, True, 0, 5, isa)
    assert np.array_equal(c, np.full((3, 5), 7))
    b = aligned_bytes(native.packed_bytes(4, 0, "f32"))
    native.gemm(np.zeros((3, 4), np.float32), b, 0, "f32", np.zeros((3, 0), np.float32), False, 0, 0, isa)


def test_wide_tiles_and_amx_blocks_sum_integers_exactly(native):
    """Emulated sets: other register tiles, packings and orders of summation, the same whole numbers."""
    names = [name for name, runs, _ in native.built_isas() if runs and name.startswith("emulated")]
    if not names:
        pytest.skip("this build has no emulated sets (CARZERO_EMULATED=OFF)")
    rng = np.random.default_rng(6)
    a = rng.integers(-4, 5, (70, 1100)).astype(np.float32)
    b = rng.integers(-4, 5, (1100, 70)).astype(np.float32)
    for name in names:
        for kind in ("f32", "bf16"):
            assert np.array_equal(product(native, as_operand(native, a, kind)[0], b, kind, name), a @ b)
