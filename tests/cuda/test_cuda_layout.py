"""The kernels' index and mask arithmetic on the host, against what the rest of the project does."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from emulated import Drop

from carzero.ops import rng


def test_a_matrix_lies_in_shared_memory_without_holes_and_without_bank_conflicts(library) -> None:
    for rows, panels in ((16, 1), (112, 3), (208, 3), (256, 4)):
        places = {
            library.carzero_chunk_offset(rows, panel, row, chunk)
            for panel in range(panels)
            for row in range(rows)
            for chunk in range(8)
        }
        assert places == set(range(0, rows * panels * 128, 16))
        for row in range(0, rows, 8):
            for chunk in range(8):
                # eight rows' chunks of one column are what one phase of ldmatrix reads
                banks = {library.carzero_chunk_offset(rows, 0, row + r, chunk) // 16 % 8 for r in range(8)}
                assert len(banks) == 8


def test_lanes_name_the_blocks_of_ldmatrix(library) -> None:
    """Matrix i of the four is what lanes 8i .. 8i+7 name; see layout.h for what each operand wants of it."""
    expected = {
        "left": [(0, 0), (8, 0), (0, 1), (8, 1)],
        "right": [(0, 0), (0, 1), (8, 0), (8, 1)],
        "transposed": [(0, 0), (8, 0), (0, 1), (8, 1)],
    }
    for lane in range(32):
        out = (ctypes.c_int * 6)()
        library.carzero_ldmatrix_chunks(lane, out)
        for which, matrices in enumerate(expected.values()):
            row, chunk = matrices[lane // 8]
            assert (out[2 * which], out[2 * which + 1]) == (row + lane % 8, chunk)


def test_an_xor_reaches_every_step_of_a_panel(library) -> None:
    library.carzero_at_step.restype = ctypes.c_uint32
    for operand in range(3):
        for lane in range(32):
            out = (ctypes.c_int * 6)()
            library.carzero_ldmatrix_chunks(lane, out)
            row, chunk = out[2 * operand], out[2 * operand + 1]
            for panel, first, step in ((0, 0, 0), (1, 16, 3), (2, 96, 2)):
                expected = library.carzero_chunk_offset(112, panel, first + row, 2 * step + chunk)
                assert library.carzero_at_step(operand, lane, 112, panel, first, step) == expected


def test_mask_bits_equal_python(library) -> None:
    for seed, layer, direction, head in ((0, 0, 0, 0), (-1, 3, 1, 3), (2**40 + 7, 1, 0, 2)):
        for memory, query in ((0, 0), (70000, 123456), (2**32 - 1, 5)):
            lanes = rng.lanes(
                torch.tensor([seed]), rng.Site.ATTENTION, layer, direction, head, torch.tensor(memory),
                torch.tensor(query), 256,
            )  # fmt: skip
            for t in (1, 6554, 32768, 65535):
                expected = np.packbits((lanes >= t).numpy(), bitorder="little")
                got = [
                    library.carzero_kept_block(seed, layer, direction, head, memory, query, t, block)
                    for block in range(32)
                ]
                assert got == expected.tolist()


def test_ranges_of_a_block(library) -> None:
    for first in range(20):
        for n in range(30):
            for block in range(7):
                inside = sum(1 << i for i in range(8) if first <= 8 * block + i < first + n)
                assert library.carzero_range_bits(first, n, block) == inside


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_emulated_rounding_is_torch_s(library, dtype: torch.dtype) -> None:
    """Every 16-bit number comes back, and floats between them, infinities and subnormals round as torch rounds them."""
    f16 = int(dtype == torch.float16)
    bits = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    finite = numbers[numbers.isfinite()]
    for x in finite.tolist():
        word = library.carzero_pack(f16, x, 0.0)
        assert library.carzero_unpack(f16, word) == x
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp2(torch.randint(-30, 18, (4000,), generator=generator).float())
    floats = torch.cat([torch.randn(4000, generator=generator) * scale, torch.tensor([65504.0, 65519.0, 65520.0, 7e4])])
    expected = floats.to(dtype).view(torch.int16)
    for x, e in zip(floats.tolist(), expected.tolist(), strict=True):
        word = library.carzero_pack(f16, x, x)
        assert word & 0xFFFF == e & 0xFFFF
        assert word >> 16 == e & 0xFFFF


def test_drawn_indices_use_all_their_bits() -> None:
    """The tests' own indices: beyond 32 bits, out of order, and one query apart from the next by more than one."""
    drop = Drop.draw(2, 3, 9)
    assert int(drop.query.max()) > 2**32
    assert drop.query[0, 0] > drop.query[0, 1]
