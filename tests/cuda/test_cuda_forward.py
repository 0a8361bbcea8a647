"""The forward kernel's source, run on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from cases import counts, inputs
from emulated import SM80, SM90, SM90_MMA, Device, Drop, by_heads, forward, plain, relative, truth

#: m, Q, P, H, K, device: every variant of plan.h, ragged tiles, values resident and streamed, odd widths. On SM90 with
#: more than 32 queries and rows, and 144 <= K <= 192, P <= 208, the kernel of wgmma runs.
SHAPES = [
    (2, 7, 9, 2, 192, SM80),
    (3, 33, 20, 1, 192, SM80),
    (1, 1, 1, 2, 64, SM90),
    (2, 40, 50, 1, 96, SM80),
    (1, 65, 98, 1, 192, SM90_MMA),
    (1, 65, 98, 1, 192, SM90),
    (2, 33, 33, 2, 160, SM90),
    (1, 130, 64, 1, 144, SM90),
    (1, 17, 113, 1, 192, SM80),
    (2, 17, 197, 1, 192, SM80),
    (2, 150, 197, 1, 192, SM90),
    (1, 64, 208, 2, 192, SM90),
    (1, 33, 256, 1, 192, SM90),
    (1, 20, 256, 1, 192, SM80),
    (1, 5, 256, 1, 256, SM80),
    (3, 5, 20, 4, 16, SM80),
    (1, 9, 30, 2, 128, SM80),
]
NAMES = {SM80: "sm80", SM90: "sm90", SM90_MMA: "sm90-mma"}
SIXTEEN = [torch.bfloat16, torch.float16]


def name(shape: tuple) -> str:
    m, q, p, h, k, device = shape
    return f"m{m}-Q{q}-P{p}-H{h}-K{k}-{NAMES[device]}"


@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_equals_float64(library, shape: tuple, dtype: torch.dtype, dropout: bool) -> None:
    m, n, p, heads, width, device = shape
    q, k, v = inputs(m, n, p, heads, width, dtype)
    drop = Drop.draw(m, n, p) if dropout else None
    out, lse, _, run = forward(library, q, k, v, heads, drop=drop, device=device)
    exact, exact_lse, _ = truth(q, k, v, heads, drop=drop)
    # plain torch rounds the same operands and the result
    assert relative(out, exact) <= 1.2 * relative(plain(q, k, v, heads, drop=drop), exact) + 1e-5
    assert (lse - exact_lse).abs().max() < 1e-5
    assert run.conflicts == 0
    assert run.shared <= device.shared
    assert bool(run.wgmma) == (device.wgmma and n > 32 and 32 < p <= 208 and 128 < width <= 192)


@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize(
    ("n", "p", "width", "shared", "device"),
    [
        (18, 9, 64, True, SM80), (18, 20, 64, False, SM80), (18, 98, 64, True, SM80), (18, 197, 64, True, SM80),
        (37, 50, 192, True, SM90), (70, 98, 176, False, SM90), (200, 197, 192, True, SM90),
    ],
)  # fmt: skip
def test_row_counts(library, n: int, p: int, width: int, shared: bool, device: Device, dropout: bool) -> None:
    """Collapsed rows, absent ones that hold NaN, a memory without any row; q of its own or shared by all memories."""
    q, k, v = inputs(4, n, p, 2, width, torch.float16, shared=shared)
    count = counts(4, p)
    k[count == 0] = v[count == 0] = torch.nan
    drop = Drop.draw(4, n, p + 40, shared=shared) if dropout else None
    out, lse, maps, run = forward(library, q, k, v, 2, count=count, drop=drop, maps=True, device=device)
    assert bool(run.wgmma) == device.wgmma
    k, v = (x.nan_to_num(0.0) for x in (k, v))
    exact, exact_lse, exact_maps = truth(q, k, v, 2, count, drop)
    assert relative(out, exact) <= 1.2 * relative(plain(q, k, v, 2, count, drop), exact) + 1e-5
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert (lse - exact_lse).nan_to_num(0.0).abs().max() < 1e-5
    assert (maps - exact_maps).abs().max() < 1e-5
    assert torch.equal(out[2], torch.zeros_like(out[2]))


@pytest.mark.parametrize(
    ("n", "p", "width", "device"),
    [(19, 9, 64, SM80), (19, 98, 128, SM80), (19, 197, 256, SM80), (35, 98, 192, SM90), (67, 197, 192, SM90)],
)
def test_masks_are_equal_bit_for_bit(library, n: int, p: int, width: int, device: Device) -> None:
    """With equal scores and values that are one-hot the output is the mask itself."""
    m = 2
    q, k, v = inputs(m, n, p, 2, width, torch.float16)
    q.zero_()
    drop = Drop.draw(m, n, p, shared=False)
    stay = drop.multipliers(2, p, None) > 0
    for first in range(0, p, width):
        some = min(width, p - first)
        v.zero_()
        for h in range(2):
            v[:, first : first + some, h * width : h * width + some] = torch.eye(some, dtype=torch.float16)
        out, *_ = forward(library, q, k, v, 2, drop=drop, device=device)
        assert torch.equal(by_heads(out, 2)[..., :some] > 0, stay[..., first : first + some])


def test_maps_are_the_mean_over_heads(library) -> None:
    for p, heads in ((9, 4), (98, 2), (197, 2)):
        q, k, v = inputs(2, 21, p, heads, 64, torch.bfloat16)
        out, _, maps, run = forward(library, q, k, v, heads, maps=True)
        _, _, exact = truth(q, k, v, heads)
        assert (maps - exact).abs().max() < 1e-5
        assert torch.equal(out, forward(library, q, k, v, heads)[0])
        # one block has all heads of a memory
        assert run.blocks == 2


@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize(
    ("heads", "p", "width", "device"), [(4, 9, 768, SM90), (4, 16, 768, SM80), (2, 20, 192, SM80), (3, 1, 64, SM80)]
)
def test_absorbed(library, heads: int, p: int, width: int, device: tuple, dropout: bool) -> None:
    """Scores and outputs against all heads' rows at once."""
    m, n, scale = 2, 37, 0.3
    x, keys, values = (t.contiguous() for t in inputs(m, n, p * heads, 1, width, torch.float16))
    keys = keys * width**-0.5
    key_bias = torch.randn(m, heads * p, generator=torch.Generator().manual_seed(1)) * 3
    count = counts(m, p)
    drop = Drop.draw(m, n, p + 40) if dropout else None
    out, _, _, run = forward(
        library, x, keys, values, heads, count=count, drop=drop, scale=scale, key_bias=key_bias, absorbed=True,
        float_out=True, device=device,
    )  # fmt: skip
    scores = (x.double() @ keys.double().transpose(1, 2) + key_bias.double().unsqueeze(1)) * scale
    scores = scores.unflatten(-1, (heads, p)).transpose(1, 2)
    scores = scores.masked_fill((count == 0)[:, None, None], -torch.inf) + count.clamp(min=1).log()[:, None, None]
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    if drop is not None:
        weights = weights * drop.multipliers(heads, p, count)
    exact = torch.einsum("mhqp,mhpd->mqd", weights, values.double().unflatten(1, (heads, p)))
    # weights are rounded to 11 bits
    assert relative(out, exact) < 5e-4
    assert run.conflicts == 0


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
@pytest.mark.parametrize("reverse", [False, True], ids=["in-order", "reverse"])
def test_no_order_of_warps_and_copies_changes_a_bit(library, reverse: bool, eager: bool) -> None:
    """A missing wait or barrier would: more tiles than warps, values resident and streamed, maps over heads; of wgmma's
    kernel also stages that are filled again, groups with unequal numbers of tiles, and one group alone."""
    for n, p, width, heads, device, maps in (
        (150, 20, 64, 2, Device(SM80.shared, 1), True),
        (150, 40, 128, 1, Device(28000, 1), False),
        (330, 40, 144, 2, Device(SM90.shared, 1, True), True),
        (330, 120, 192, 1, Device(SM90.shared, 1, True), False),
        (50, 98, 192, 2, Device(SM90.shared, 1, True), True),
    ):
        q, k, v = inputs(1, n, p, heads, width, torch.float16)
        drop = Drop.draw(1, q.shape[1], p)
        first = forward(library, q, k, v, heads, drop=drop, maps=maps, device=device)
        again = forward(library, q, k, v, heads, drop=drop, maps=maps, device=device, reverse=reverse, eager=eager)
        assert bool(first[3].wgmma) == device.wgmma
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not maps or torch.equal(first[2], again[2])
        exact = truth(q, k, v, heads, drop=drop)
        assert relative(first[0], exact[0]) < 5e-4
        assert not maps or (first[2] - exact[2]).abs().max() < 1e-5


@pytest.mark.parametrize(("p", "width", "wgmma"), [(9, 64, False), (98, 192, True)])
def test_splitting_the_queries_changes_no_bit(library, p: int, width: int, wgmma: bool) -> None:
    q, k, v = inputs(1, 520, p, 1, width, torch.bfloat16)
    drop = Drop.draw(1, 520, p)
    devices = [Device(SM90.shared, n, wgmma) for n in (1, 2, SM90.multiprocessors)]
    results = [forward(library, q, k, v, 1, drop=drop, device=device) for device in devices]
    assert [r[3].blocks for r in results] == sorted({r[3].blocks for r in results})
    assert all(torch.equal(r[0], results[0][0]) for r in results)
    assert all(bool(r[3].wgmma) == wgmma for r in results)


def test_a_call_that_fits_nowhere_is_refused(library) -> None:
    q, k, v = inputs(1, 3, 256, 1, 256, torch.bfloat16)
    with pytest.raises(AssertionError, match="no kernel fits"):
        forward(library, q, k, v, 1, device=Device(101376, 80))
