"""What must not change the native backend's numbers: tiles, threads, packing, absorption, projection, absent rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from op_cases import Case, error, make_case
from torch import Tensor

from carzero.ops import pack_weights, pair_attention, pair_logits, pair_simr, project_memory

#: Another order of float32 sums of up to some hundred products: about 10 ulp of 1.2e-7.
REORDERED = 2e-6
#: The same through the backward pass, whose tiles sum over rows.
REORDERED_GRADIENT = 1e-5


@pytest.fixture(autouse=True)
def _cpp(need) -> Iterator[None]:
    need("cpp")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def collapsed(memories: int, rows: int) -> Tensor:
    """Counts with absent, ordinary and collapsed rows; the last memory has none at all."""
    count = torch.ones(memories, rows, dtype=torch.int32)
    for m in range(memories):
        real = 1 + (5 * m) % (rows - 2)
        count[m, real] = 3 + 7 * m
        count[m, real + 1 :] = 0
        count[m, real // 2] = m % 2
    count[-1] = 0
    return count


def case(**options) -> Case:
    options = {"dropout_p": 0.2, "seed": 11, "backend": "cpp", "row_count": collapsed(5, 19), **options}
    return make_case(5, 37, 19, **options)


def run(c: Case, **options) -> list[Tensor]:
    out = pair_logits(c.memory, c.queries, c.weights, **{**c.options, **options})
    weight = torch.linspace(-0.3, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, c.leaves(), weight)]


def pair_list(memories: int, queries: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    drawn = (torch.randint(0, n, (61,), generator=generator) for n in (memories, queries))
    return torch.stack(tuple(drawn), 1)


@pytest.mark.parametrize("listed", [False, True], ids=["all", "pairs"])
def test_threads_change_no_bit(listed: bool) -> None:
    c = case(pairs=pair_list(5, 37)) if listed else case()
    torch.set_num_threads(1)
    one = run(c)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for a, b in zip(one, run(c)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("absorb", ["0", "1"])
@pytest.mark.parametrize("listed", [False, True], ids=["all", "pairs"])
def test_tiles_change_no_bit_of_the_forward(listed: bool, absorb: str, monkeypatch) -> None:
    monkeypatch.setenv("CARZERO_CPU_ABSORB", absorb)
    c = case(pairs=pair_list(5, 37)) if listed else case()
    with torch.no_grad():
        outputs = [
            pair_logits(c.memory, c.queries, c.weights, **c.options, tile_pairs=t) for t in (None, 1, 7, 24, 1000)
        ]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("tile", [1, 16, 50])
def test_tiles_only_reorder_the_sums_of_gradients(tile: int) -> None:
    c = case()
    for whole, cut in zip(run(c), run(c, tile_pairs=tile)):
        assert error(cut, whole) < REORDERED_GRADIENT


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_absorption_is_exact(dropout_p: float, monkeypatch) -> None:
    c = case(dropout_p=dropout_p)
    results = []
    for absorb in "01":
        monkeypatch.setenv("CARZERO_CPU_ABSORB", absorb)
        with torch.no_grad():
            maps = pair_attention(c.memory, c.queries, c.weights, row_count=c.options["row_count"], backend="cpp")
            results.append((pair_logits(c.memory, c.queries, c.weights, **c.options), maps))
    (plain, plain_maps), (absorbed, absorbed_maps) = results
    assert not torch.equal(plain, absorbed), "both ways ran the same code"
    assert error(absorbed, plain) < REORDERED
    assert error(absorbed_maps, plain_maps) < REORDERED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_packed_weights_change_no_bit(dtype: torch.dtype) -> None:
    c = case().to(dtype) if dtype == torch.float32 else make_case(5, 37, 19, dtype, backend="cpp")
    with torch.no_grad():
        packed = pack_weights(c.weights, dtype)
        assert packed.blob is not None
        for function in (pair_logits, pair_simr):
            plain = function(c.memory, c.queries, c.weights, **c.options)
            assert torch.equal(function(c.memory, c.queries, packed, **c.options), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_16_bits_are_their_float32_copies(dtype: torch.dtype) -> None:
    c = case()
    narrow = Case(c.memory, c.queries, c.weights.map(lambda t: t.detach().to(dtype).requires_grad_()), c.options)
    wide = Case(c.memory, c.queries, narrow.weights.map(lambda t: t.detach().float().requires_grad_()), c.options)
    for a, b, leaf in zip(run(narrow), run(wide), [c.memory, *narrow.leaves()]):
        assert torch.equal(a, b.to(leaf.dtype))


@pytest.mark.parametrize("absorb", ["0", "1"])
def test_projected_memory(absorb: str, monkeypatch) -> None:
    monkeypatch.setenv("CARZERO_CPU_ABSORB", absorb)
    c = case()
    count = c.options["row_count"]
    with torch.no_grad():
        # absent rows of the projection are never read
        bank = project_memory(c.memory, c.weights, row_count=count)
        bank.kv[count == 0] = torch.nan
        options = {k: v for k, v in c.options.items() if k != "row_count"}
        plain = pair_logits(c.memory, c.queries, c.weights, **c.options)
        assert error(pair_logits(bank, c.queries, c.weights, **options), plain) < REORDERED


def test_absent_rows_are_neither_read_nor_given_a_gradient() -> None:
    c = case()
    absent = c.options["row_count"] == 0
    dirty = c.memory.detach().clone()
    dirty[absent] = torch.nan
    dirty = dirty.requires_grad_()
    clean = run(c)
    for a, b in zip(clean, run(Case(dirty, c.queries, c.weights, c.options))):
        assert torch.equal(a, b)
    assert (clean[1][absent] == 0).all()


def test_rows_by_themselves_equal_their_compacted_memory() -> None:
    """Dropping absent rows beforehand changes no bit where nothing is random."""
    c = make_case(3, 8, 12, backend="cpp")
    count = torch.ones(3, 12, dtype=torch.int32)
    count[:, 1::3] = 0
    with torch.no_grad():
        masked = pair_logits(c.memory, c.queries, c.weights, row_count=count, backend="cpp")
        short = pair_logits(c.memory[:, count[0] > 0].contiguous(), c.queries, c.weights, backend="cpp")
    assert torch.equal(masked, short)


@pytest.mark.parametrize(("memories", "queries", "rows"), [(0, 3, 4), (3, 0, 4), (0, 0, 1)])
def test_nothing_to_do(memories: int, queries: int, rows: int) -> None:
    c = make_case(memories, queries, rows)
    out = pair_logits(c.memory, c.queries, c.weights, backend="cpp")
    assert out.shape == (memories, queries)
    grads = torch.autograd.grad(out.sum(), c.leaves())
    assert all((g == 0).all() for g in grads)
