"""The random numbers: golden values of docs/conventions.md, and that they look random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from carzero.ops.rng import Site, keep_scale, lanes, philox_4x32, threshold

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "conventions.md").read_text()


def rows(header: str) -> list[list[str]]:
    """Cells of the Markdown table that starts with a header."""
    lines = TEXT[TEXT.index(header) :].splitlines()[2:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


GENERATOR = rows("| counter | key | words |")
LANES = rows("| seed | site | layer |")


@pytest.mark.parametrize("row", GENERATOR, ids=lambda row: row[0])
def test_generator(row: list[str]) -> None:
    counter, key, words = ([torch.tensor(int(word, 16)) for word in cell.split()] for cell in row)
    assert [int(w) for w in philox_4x32(tuple(counter), tuple(key))] == [int(w) for w in words]


@pytest.mark.parametrize("row", LANES, ids=lambda row: "-".join(row[:8]))
def test_lanes(row: list[str]) -> None:
    seed, site, layer, direction, head, memory, query, column = (int(cell) for cell in row[:8])
    drawn = lanes(
        torch.tensor([seed]), Site(site), layer, direction, head, torch.tensor(memory), torch.tensor(query), column + 8
    )
    assert drawn[column:].tolist() == [int(lane) for lane in row[8].split()]


def test_there_are_golden_values() -> None:
    assert len(GENERATOR) == 3
    assert {int(row[1]) for row in LANES} >= {0, 1, 2, 4, 7}


def test_columns_do_not_depend_on_how_many_are_drawn() -> None:
    args = (torch.tensor([3]), Site.FFN_HIDDEN, 1, 0, 0, torch.arange(2).view(2, 1), torch.arange(3))
    assert torch.equal(lanes(*args, 21), lanes(*args, 1024)[..., :21])


def test_keep_rate_is_exact_in_the_mean() -> None:
    p = 0.1
    drawn = lanes(torch.tensor([8]), Site.AFTER_FFN, 0, 0, 0, torch.arange(64).view(64, 1), torch.arange(64), 768)
    kept = (drawn >= threshold(p)).double().mean().item()
    # 3.1 million draws: one standard deviation of the mean is 1.7e-4
    assert kept == pytest.approx(1 / keep_scale(p), abs=7e-4)


def test_lanes_of_neighbours_are_uncorrelated() -> None:
    drawn = lanes(torch.tensor([8]), Site.AFTER_FFN, 0, 0, 0, torch.arange(64).view(64, 1), torch.arange(64), 64)
    x = drawn.double() / 65536 - 0.5
    assert x.mean().abs() < 3e-3
    for axis in range(3):
        correlation = (x * x.roll(1, axis)).mean() * 12
        # 262,144 draws: one standard deviation is 2e-3
        assert correlation.abs() < 8e-3


def test_threshold_and_scale() -> None:
    assert [threshold(p) for p in (0.0, 0.1, 0.5, 0.99999999)] == [0, 6554, 32768, 65535]
    assert keep_scale(0.5) == 2.0
    assert keep_scale(0.0) == 1.0
    with pytest.raises(ValueError, match=r"dropout_p must lie in \[0, 1\), got 1.0"):
        threshold(1.0)
