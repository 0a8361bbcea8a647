"""The tile planner's choices, at the sizes whose break-even is known from counting multiply-adds."""

from __future__ import annotations

import pytest

CARZERO = {"D": 768, "H": 4, "F": 1024, "L": 4}


@pytest.mark.parametrize(("keys", "pays_from"), [(9, 25), (20, 40), (49, 100)])
def test_absorption_pays_where_queries_outnumber_the_keys(native, keys, pays_from):
    for queries, expected in ((max(1, keys // 4), False), (pays_from, True), (4 * pays_from, True)):
        assert native.plan_tiles(16, queries, keys, threads=1, **CARZERO)["absorb"] is expected


def test_absorption_does_not_pay_for_an_image_and_its_batch(native):
    assert native.plan_tiles(16, 128, 197, threads=1, **CARZERO)["absorb"] is False


def test_multiply_adds_are_those_counted_by_hand(native):
    M, Q, P, D, H, L = 2, 3, 5, 32, 2, 3
    plan = native.plan_tiles(M, Q, P, D=D, H=H, F=64, L=L, threads=1)
    rows = M * Q
    # per row and layer: o everywhere, q in all layers but the first; scores and values of all heads are 2 P D
    assert plan["multiply_adds_plain"] == rows * D * D * (L + L - 1) + rows * P * 2 * D * L
    # per key: V' everywhere, K' in all layers but the first; each head's score and value then have width D
    assert plan["multiply_adds_absorbed"] == M * P * D * D * (L + L - 1) + rows * P * D * ((1 + H) + 2 * H * (L - 1))


def test_tiles_cover_the_rows_evenly(native):
    for memories, queries, threads in [(1, 1, 1), (16, 128, 2), (3, 77, 2), (128, 128, 8)]:
        rows = memories * queries
        tile = native.plan_tiles(memories, queries, 197, threads=threads, **CARZERO)["forward_tile_rows"]
        assert 1 <= tile <= max(rows, 1)
        tiles = -(-rows // tile)
        assert tile * tiles - rows < tiles
        if rows >= 64 * threads:
            assert tiles % threads == 0
    assert native.plan_tiles(16, 128, 197, threads=2, tile_pairs=50, **CARZERO)["forward_tile_rows"] == 50


def test_sizes_must_be_positive(native):
    with pytest.raises(ValueError, match="every size must be positive"):
        native.plan_tiles(0, 1, 1, threads=1, **CARZERO)
