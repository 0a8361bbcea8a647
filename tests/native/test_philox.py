"""The C++ random numbers against carzero/ops/rng.py, bit for bit, and against published values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carzero.ops import rng

SEEDS = [0, 1, -1, 0x0123456789ABCDEF, -(2**63), 2**63 - 1]


def test_known_answers_of_the_published_generator(native):
    """The three philox4x32-10 lines of the known-answer file of Random123 (Salmon et al.)."""
    ones = 0xFFFFFFFF
    as_signed = int(np.array(0x299F31D0_A4093822, np.uint64).view(np.int64))
    cases = [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (-1, (ones,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (as_signed, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for seed, counter, expected in cases:
        assert tuple(native.philox_words(seed, *counter, 1)[0]) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_words_equal_python(native, seed):
    c0, c1, c2 = 0x00050307, 2**32 - 2, 12345
    words = native.philox_words(seed, c0, c1, c2, 7, 50)
    counter = (torch.tensor(c0), torch.tensor(c1), torch.tensor(c2), torch.arange(7, 57))
    expected = torch.stack(torch.broadcast_tensors(*rng.philox_4x32(counter, rng.seed_key(torch.tensor([seed])))), -1)
    assert np.array_equal(words, expected.numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("columns", [1, 7, 8, 33, 64, 129, 197, 1025])
def test_vector_lanes_equal_python(native, isa, seed, columns):
    for site, layer, direction, head, memory, query in [(0, 3, 1, 11, 5, 2**40 + 3), (2, 0, 0, 0, 2**31 + 9, 0)]:
        expected = rng.lanes(
            torch.tensor([seed]),
            rng.Site(site),
            layer,
            direction,
            head,
            torch.tensor(memory),
            torch.tensor(query),
            columns,
        )
        got = native.philox_lanes(seed, site, layer, direction, head, memory, query, columns, isa=isa)
        assert np.array_equal(got, expected.numpy())


def test_lanes_start_at_any_block(native, isa):
    whole = native.philox_lanes(9, 2, 1, 0, 0, 3, 4, 400, isa=isa)
    for block in (1, 2, 5, 17, 31):
        part = native.philox_lanes(9, 2, 1, 0, 0, 3, 4, 100, first_block=block, isa=isa)
        assert np.array_equal(part, whole[8 * block : 8 * block + 100])


def test_threshold_and_scale_equal_python(native):
    # the .5 cases round half to even
    for p in [0.0, 0.1, 0.25, 0.5, 0.9, 0.9999999, 0.5 / 65536, 1.5 / 65536, 2.5 / 65536, 1 / 3]:
        t = rng.threshold(p)
        assert native.philox_threshold(p) == t
        assert native.philox_keep_scale(t) == np.float32(rng.keep_scale(p))


def test_drop_out_keeps_lanes_at_or_above_the_threshold(native, isa):
    x = np.linspace(-3, 3, 77, dtype=np.float32)
    lanes = native.philox_lanes(3, 1, 0, 0, 0, 1, 2, 96, isa=isa)
    lanes[:4] = [0, 6553, 6554, 65535]
    t, scale = rng.threshold(0.1), np.float32(rng.keep_scale(0.1))
    expected = np.where(lanes[:77] >= t, x * scale, np.float32(0))
    assert np.array_equal(native.drop_out(x, lanes, t, scale, isa), expected)
    assert expected[1] == 0
    assert expected[2] != 0
