"""The Triton random numbers against the golden values and against carzero/ops/rng.py, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from carzero.kernels.philox import counter_word, kept_bits, spread_bits
from carzero.ops.rng import Site, kept, lanes, threshold

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "conventions.md").read_text()


def rows(header: str) -> list[list[str]]:
    """Cells of the Markdown table that starts with a header."""
    lines = TEXT[TEXT.index(header) :].splitlines()[2:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


GENERATOR = rows("| counter | key | words |")
LANES = rows("| seed | site | layer |")


@triton.jit
def write_words(out, seed, c0, c1, c2, c3):
    w0, w1, w2, w3 = tl.philox(tl.load(seed), tl.load(c0), tl.load(c1), tl.load(c2), tl.load(c3))
    tl.store(out, w0.to(tl.int32, bitcast=True))
    tl.store(out + 1, w1.to(tl.int32, bitcast=True))
    tl.store(out + 2, w2.to(tl.int32, bitcast=True))
    tl.store(out + 3, w3.to(tl.int32, bitcast=True))


@triton.jit
def write_kept(
    out, seed, memory, query, site, layer, direction, head, threshold, start, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    row = tl.arange(0, ROWS)
    block = tl.arange(0, BLOCKS)
    word = counter_word(site, layer, direction, head)
    bits = kept_bits(
        tl.load(seed), word, tl.load(memory + row)[:, None], tl.load(query + row)[:, None],
        (start + block)[None, :], threshold,
    )  # fmt: skip
    place = row[:, None] * (8 * BLOCKS) + tl.arange(0, 8 * BLOCKS)[None, :]
    tl.store(out + place, spread_bits(bits, ROWS, BLOCKS).to(tl.int8))


def masks(seed, site, layer, direction, head, memory, query, t, start, blocks, device) -> torch.Tensor:
    """``[2, 8 * blocks]`` bool: the masks of two pairs from column 8 * start on."""
    out = torch.empty(2, 8 * blocks, dtype=torch.int8, device=device)
    seed, memory, query = (torch.tensor(x, device=device) for x in ([seed], memory, query))
    write_kept[(1,)](out, seed, memory, query, site, layer, direction, head, t, start, ROWS=2, BLOCKS=blocks)
    return out.bool().cpu()


def int32(word: str) -> int:
    value = int(word, 16)
    return value - (value >> 31 << 32)


@pytest.mark.parametrize("row", GENERATOR, ids=lambda row: row[0])
def test_the_generator_gives_the_published_words(row: list[str], device: torch.device) -> None:
    counter, key, words = ([int32(word) for word in cell.split()] for cell in row)
    seed = torch.tensor([key[1] << 32 | key[0] & 0xFFFFFFFF], device=device)
    out = torch.empty(4, dtype=torch.int32, device=device)
    write_words[(1,)](out, seed, *(torch.tensor([c], dtype=torch.int32, device=device) for c in counter))
    assert out.tolist() == words


@pytest.mark.parametrize("row", LANES, ids=lambda row: "-".join(row[:8]))
def test_golden_lanes(row: list[str], device: torch.device) -> None:
    """A lane is found by the thresholds around it: kept at its own value, dropped one above."""
    seed, site, layer, direction, head, memory, query, column = (int(cell) for cell in row[:8])
    golden = [int(cell) for cell in row[8].split()]
    for j, lane in ((j, golden[j]) for j in (0, 3, 7)):
        for t, stays in ((lane, True), (lane + 1, False)):
            drawn = masks(seed, site, layer, direction, head, [memory] * 2, [query] * 2, t, column // 8, 1, device)
            assert bool(drawn[0, j]) is stays


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("p", [1e-5, 0.1, 0.5, 0.9999999])
def test_masks_equal_the_reference(seed: int, p: float, device: torch.device) -> None:
    memory, query = [11, 2**40 + 3], [2**31 + 9, 5]
    for site, layer, direction, head, start, blocks in ((0, 3, 1, 3, 0, 32), (2, 200, 0, 0, 17, 4), (7, 0, 1, 0, 1, 8)):
        columns = 8 * (start + blocks)
        expected = kept(
            torch.tensor([seed]), Site(site), layer, direction, head, torch.tensor(memory), torch.tensor(query),
            columns, p,
        )  # fmt: skip
        drawn = masks(seed, site, layer, direction, head, memory, query, threshold(p), start, blocks, device)
        assert torch.equal(drawn, expected[:, 8 * start :])


def test_the_reference_is_not_constant() -> None:
    """What the comparisons above would miss if both sides drew nothing."""
    drawn = lanes(torch.tensor([1]), Site.ATTENTION, 0, 0, 0, torch.arange(2), torch.arange(2), 256)
    assert 0.05 < (drawn < threshold(0.1)).double().mean() < 0.15
