"""The source of Hopper's backward kernel, run on the CPU with its instructions emulated, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from cases import counts, inputs
from emulated import SM90, SM90_MMA, Device, Drop, backward, by_heads, forward, relative
from test_cuda_backward import run_both

#: m, Q, P, H, K, device, counts, q shared: with up to 104 rows one block makes all gradients, with more two share the
#: keys; blocks of 64 keys and of 104; ragged queries, keys and widths.
SHAPES = [
    (2, 33, 33, 2, 144, SM90, False, True),
    (1, 130, 98, 1, 192, SM90, False, False),
    (4, 65, 104, 1, 160, SM90, True, False),
    (1, 64, 105, 1, 192, SM90, False, False),
    (4, 33, 197, 1, 176, SM90, True, True),
]
MORE = [
    (1, 64, 64, 1, 192, SM90, False, False),
    (1, 65, 97, 2, 192, SM90, False, False),
    (4, 64, 98, 2, 144, SM90, True, True),
    (1, 33, 104, 1, 176, SM90, False, False),
    (4, 130, 105, 1, 144, SM90, True, False),
    (4, 70, 64, 1, 160, SM90, True, False),
    (1, 130, 197, 1, 192, SM90, False, False),
    (1, 65, 208, 2, 160, SM90, False, False),
    (4, 40, 208, 1, 192, SM90, True, False),
]


@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES, *(pytest.param(shape, marks=pytest.mark.slow) for shape in MORE)],
    ids=lambda s: f"m{s[0]}-Q{s[1]}-P{s[2]}-H{s[3]}-K{s[4]}-{s[6]}",
)
def test_equals_float64(library, shape: tuple, dtype: torch.dtype, dropout: bool) -> None:
    ours, exact, before, runs = run_both(library, shape, dtype, dropout)
    assert [bool(run.wgmma) for run in runs] == [True]
    # as for the other kernels
    most = 6e-3 if dtype == torch.bfloat16 else 8e-4
    assert relative(ours["q"], exact["q"]) < most
    assert relative(ours["k"] - before[:, :, 0], exact["k"]) < most
    assert relative(ours["v"] - before[:, :, 1], exact["v"]) < most


def test_absent_rows_get_no_gradient(library) -> None:
    for p in (50, 110):
        ours, _, before, _ = run_both(library, (3, 40, p, 1, 144, SM90, True, False), torch.float16, True)
        absent = counts(3, p) == 0
        for i, name in enumerate("kv"):
            assert torch.equal(ours[name][absent], before[:, :, i][absent])
        assert torch.equal(ours["q"][2], torch.zeros_like(ours["q"][2]))


@pytest.mark.parametrize(("p", "counted"), [(98, False), (98, True), (197, False)])
def test_dropped_weights_are_the_masks_bit_for_bit(library, p: int, counted: bool) -> None:
    """With equal scores and one-hot output gradients, gradients of the values are the used weights themselves: 0 where
    dropped, and for a collapsed row its kept share."""
    m, heads, width, n = 2, 2, 144, 130
    q, k, v = inputs(m, n, p, heads, width, torch.float16)
    q.zero_()
    count = None
    if counted:
        count = torch.ones(m, p, dtype=torch.int32)
        count[0, 5], count[0, 6], count[1, p - 1], count[1, 50] = 3, 7, 40, 0
    drop = Drop.draw(m, n, p + 40 if counted else p, shared=False)
    used = drop.multipliers(heads, p, count)
    if count is not None:
        used = used * count[:, None, None].double() / count.sum(1)[:, None, None, None]
    else:
        used = used / p
    out, lse, _, _ = forward(library, q, k, v, heads, count=count, drop=drop, device=SM90)
    d_out = torch.zeros(m, n, heads * width, dtype=torch.float16)
    for h in range(heads):
        d_out[:, :, h * width : h * width + n] = torch.eye(n, dtype=torch.float16)
    d_kv = torch.zeros(m, p, 2, heads * width)
    _, runs = backward(library, d_out, q, k, v, out, lse, heads, d_kv, count=count, drop=drop, device=SM90)
    assert runs[-1].wgmma
    got = by_heads(d_kv[:, :, 1], heads)[..., :n].transpose(2, 3)
    assert torch.equal(got == 0, used == 0)
    assert (got - used).abs().max() < 1e-3 * used.max()


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
@pytest.mark.parametrize("reverse", [False, True], ids=["in-order", "reverse"])
def test_no_order_of_warps_and_copies_changes_a_bit(library, reverse: bool, eager: bool) -> None:
    """A missing wait, fence or barrier would: stages filled again, collapsed keys' shares, two blocks of keys."""
    for shape in (
        (1, 200, 98, 1, 144, SM90, True, False),
        (1, 200, 98, 1, 192, SM90, False, False),
        (1, 150, 120, 1, 144, SM90, False, False),
    ):
        first, exact, before, _ = run_both(library, shape, torch.float16, True)
        again, _, _, _ = run_both(library, shape, torch.float16, True, reverse=reverse, eager=eager)
        assert all(torch.equal(first[name], again[name]) for name in "qkv")
        assert relative(first["q"], exact["q"]) < 8e-4
        assert relative(first["k"] - before[:, :, 0], exact["k"]) < 8e-4
        assert relative(first["v"] - before[:, :, 1], exact["v"]) < 8e-4


@pytest.mark.parametrize(
    ("n", "p", "width", "device"),
    [
        (32, 98, 192, SM90), (64, 32, 192, SM90), (33, 209, 192, SM90), (33, 98, 128, SM90), (33, 98, 208, SM90),
        (33, 98, 192, SM90_MMA), (33, 98, 192, Device(200000, 132, True)),
    ],
)  # fmt: skip
def test_other_calls_are_left_to_the_other_kernels(library, n: int, p: int, width: int, device: Device) -> None:
    ours, exact, _, runs = run_both(library, (1, n, p, 1, width, device, False, False), torch.float16, False)
    assert not any(run.wgmma for run in runs)
    assert relative(ours["q"], exact["q"]) < 8e-4
