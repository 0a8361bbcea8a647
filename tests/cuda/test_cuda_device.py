"""The kernels on a GPU: each against its emulation, the whole op against float64, streams and graphs."""

from __future__ import annotations

import pytest
import torch
from cases import counts, inputs
from emulated import Device, Drop, backward, forward, relative
from op_cases import make_case, named, seeded_like

from carzero.ops import pair_attention, pair_logits
from carzero.ops.cuda import available
from carzero.ops.rng import threshold

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU is visible")
    able, why = available(torch.device("cuda"))
    if not able:
        pytest.skip(f"cuda: {why}")


def limits(wgmma: bool) -> Device:
    properties = torch.cuda.get_device_properties(0)
    able = wgmma and torch.cuda.get_device_capability() == (9, 0)
    return Device(properties.shared_memory_per_block_optin, properties.multi_processor_count, able)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize(
    ("n", "p", "width", "wgmma"),
    [
        (33, 9, 192, True), (70, 20, 64, True), (65, 98, 192, True), (65, 98, 192, False), (330, 197, 192, True),
        (40, 197, 192, False), (40, 50, 144, True), (130, 104, 160, True), (130, 105, 176, True), (18, 256, 256, True),
    ],
)  # fmt: skip
def test_kernels_equal_their_emulation(
    library, n: int, p: int, width: int, wgmma: bool, dropout: bool, dtype: torch.dtype
) -> None:
    """`wgmma` matters on compute capability 9.0 alone: without it the kernel of the other devices runs there."""
    m, heads = 3, 2
    q, k, v = inputs(m, n, p, heads, width, dtype)
    count, drop = counts(m, p), Drop.draw(m, n, p + 40) if dropout else None
    k[count == 0] = v[count == 0] = 0
    out, lse, _, _ = forward(library, q, k, v, heads, count=count, drop=drop, device=limits(wgmma))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    d_kv = torch.zeros(m, p, 2, heads * width)
    d_q, _ = backward(library, grad, q, k, v, out, lse, heads, d_kv, count=count, drop=drop, device=limits(wgmma))
    there = [x.cuda() for x in (q, k.contiguous(), v.contiguous(), grad, out, lse)]
    arguments: tuple = (None, None, None, 0, 0, 0)
    if drop is not None:
        arguments = (
            drop.seed.cuda(), drop.memory.cuda(), drop.query.cuda(), threshold(drop.p), drop.layer, drop.direction,
        )  # fmt: skip
    ours = torch.full_like(there[0], torch.nan)
    our_lse, delta = (torch.full_like(there[5], torch.nan) for _ in range(2))
    shape = (heads, width**-0.5, count.cuda())
    torch.ops.carzero_cuda.attention_forward(*there[:3], *shape, ours, our_lse, None, *arguments, wgmma)
    assert relative(ours.cpu(), out.double()) < 1e-3
    our_dq, our_dk, our_dv = (torch.zeros(x.shape, device="cuda") for x in (q, k, v))
    torch.ops.carzero_cuda.attention_backward(
        there[3], *there[:3], there[4], there[5], *shape, delta, our_dq, our_dk, our_dv, *arguments, wgmma
    )
    for a, b in ((our_dq, d_q), (our_dk, d_kv[:, :, 0]), (our_dv, d_kv[:, :, 1])):
        assert relative(a.cpu(), b.double()) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.2, "seed": 3}], ids=["", "dropout"])
def test_the_op_equals_the_torch_backend(dtype: torch.dtype, options: dict) -> None:
    case = make_case(5, 33, 20, dtype, pad_rows=6, **options)
    results = []
    for backend in ("cuda", "torch"):
        leaves = [t.detach().cuda().requires_grad_() for t in case.leaves()]
        weights = case.weights.from_flat(case.weights.spec, leaves[2:])
        out = pair_logits(leaves[0], leaves[1], weights, backend=backend, **options)
        grads = torch.autograd.grad(out, leaves, seeded_like(out).cuda())
        results.append({"out": out.cpu(), **named(case, [g.cpu() for g in grads])})
    most = 5e-2 if dtype == torch.bfloat16 else 5e-3
    for name, ours in results[0].items():
        assert relative(ours, results[1][name].double()) < most, name


def test_it_follows_the_stream_and_can_be_captured() -> None:
    case = make_case(4, 64, 20, torch.bfloat16)
    memory, queries = case.memory.detach().cuda(), case.queries.detach().cuda()
    weights = case.weights.map(lambda t: t.detach().cuda())
    with torch.no_grad():
        expected = pair_logits(memory, queries, weights, backend="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            pair_logits(memory, queries, weights, backend="cuda")
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = pair_logits(memory, queries, weights, backend="cuda")
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)
        maps = pair_attention(memory, queries, weights, backend="cuda")
    assert (maps.sum(-1) - 1).abs().max() < 1e-4
