"""The inline vector functions of csrc/cpu/simd.h on every instruction set that this machine runs."""

from __future__ import annotations

import numpy as np
import torch


def test_exp_is_within_two_ulp_and_exact_at_the_ends(native, isa):
    x = np.concatenate([np.linspace(-87.3, 88.7, 200_003), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    y = native.vector_exp(x, isa)
    truth = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - truth) / np.spacing(truth.astype(np.float32))) < 2.0
    ends = np.array([-np.inf, -1e30, -88.0, 0.0, 88.73, 1e30, np.inf], np.float32)
    assert np.array_equal(native.vector_exp(ends, isa), np.array([0, 0, 0, 1, np.inf, np.inf, np.inf], np.float32))
    assert np.isnan(native.vector_exp(np.array([np.nan], np.float32), isa)[0])


def test_float_to_bf16_rounds_as_torch(native, isa):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_001, dtype=np.uint32)
    # ties, both ways; infinities; the largest finite; signed zeros; denormals
    special = [0x3F808000, 0x3F818000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0, 0x80000000, 1, 0x00018000]
    bits[: len(special)] = special
    x = bits.view(np.float32)
    got = native.float_to_bf16(x, isa)
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(x)
    assert np.array_equal(got[~nan], expected[~nan])
    assert np.all(np.isnan((got[nan].astype(np.uint32) << 16).view(np.float32)))


def test_every_sixteen_bit_value_widens_exactly(native, isa):
    bits = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    for type, dtype in [("bf16", torch.bfloat16), ("f16", torch.float16)]:
        got = native.bits_to_float(bits, type, isa)
        expected = torch.from_numpy(bits.view(np.int16).copy()).view(dtype).float().numpy()
        assert np.array_equal(got, expected, equal_nan=True)
        # the sign of zero too
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(got[number]), np.signbit(expected[number]))


def test_sum_and_largest(native, isa):
    for n in (1, 3, 8, 17, 64, 197):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32) - 5
        total, largest = native.vector_reduce(x, isa)
        assert abs(total - x.astype(np.float64).sum()) < 1e-6 * np.abs(x).sum()
        assert largest == x.max()
