"""Decoders other than CARZero's: each field of the spec, against modules written apart from the op."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import DEVICE, error
from torch import Tensor, nn
from torch.nn import functional as F

from carzero.ops import DecoderSpec, DecoderWeights, choose, pair_attention, pair_logits, pair_simr, project_memory
from carzero.ops.masks import PairMasks
from carzero.ops.rng import Site, kept
from carzero.ops.spec import decode, parameter_names

BASE = DecoderSpec(width=32, layers=2, heads=4, ffn=48, head_hidden=(24, 16, 12))
TOKENS = replace(BASE, self_attention=True)
SPECS = {
    "gelu": replace(BASE, activation="gelu"),
    "post": replace(BASE, norm_first=False),
    "no-norm": replace(BASE, norm_on=()),
    "norm-on-output": replace(BASE, norm_on=("output",)),
    "norm-on-queries": replace(BASE, norm_on=("queries",)),
    "outputs": replace(BASE, outputs=3),
    "one-hidden": replace(BASE, head_hidden=(20,)),
    "memory-width": replace(BASE, memory_width=20, norm_on=("queries", "output")),
    "tokens-first": TOKENS,
    "tokens-all": replace(TOKENS, readout="all", outputs=2, head="linear"),
    "albef": replace(
        TOKENS, activation="gelu", norm_first=False, norm_on=(), memory_width=20, outputs=2, head="linear", eps=1e-12,
        dropout_on=("attention", "projection"),
    ),
}  # fmt: skip
BACKENDS = ("reference", "torch")
M, Q, T, P = 3, 4, 5, 6


class Plain(nn.Module):
    """A decoder of nn.MultiheadAttention and nn.LayerNorm that runs one pair at a time; copies the op's weights."""

    def __init__(self, weights: DecoderWeights) -> None:
        super().__init__()
        s = self.spec = weights.spec
        names = iter(parameter_names(s))
        self.named = {next(names): t for t in weights.flat()}
        self.heads = nn.ModuleList(
            nn.MultiheadAttention(s.width, s.heads, kdim=s.memory_dim, vdim=s.memory_dim, batch_first=True).double()
            for _ in range(s.layers)
        )

    def forward(self, memory: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and representation of one pair, memory ``[P, Dm]``, query ``[T, D]``."""
        s, w = self.spec, self.named

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}weight"], w[f"{name}bias"], s.eps)

        def shared(x: Tensor, place: str) -> Tensor:
            return norm(x, "norm.") if place in s.norm_on else x

        def around(x: Tensor, name: str, function) -> Tensor:
            return x + function(norm(x, name)) if s.norm_first else norm(x + function(x), name)

        m, t = shared(memory, "memory"), shared(query, "queries")
        for l in range(s.layers):
            p = f"layers.{l}."
            d = s.width
            if s.memory_width is None:
                q_w, k_w, v_w = w[p + "in_proj_weight"].chunk(3)
            else:
                q_w, (k_w, v_w) = w[p + "in_proj_weight"], w[p + "memory_proj_weight"].chunk(2)
            out = w[p + "out_proj_weight"], w[p + "out_proj_bias"]

            def attend(x, k, q_w, k_w, v_w, bias, out):
                return F.multi_head_attention_forward(
                    x.unsqueeze(1), k.unsqueeze(1), k.unsqueeze(1), s.width, s.heads, None, bias, None, None, False,
                    0.0, *out, use_separate_proj_weight=True, q_proj_weight=q_w, k_proj_weight=k_w, v_proj_weight=v_w,
                )[0].squeeze(1)  # fmt: skip

            if s.self_attention:
                own = (*w[p + "self_in_proj_weight"].split(d), w[p + "self_in_proj_bias"])
                own_out = w[p + "self_out_proj_weight"], w[p + "self_out_proj_bias"]
                t = around(t, p + "norm1_", lambda x: attend(x, x, *own, own_out))  # noqa: B023
            t = around(t, p + "norm2_", lambda x: attend(x, m, q_w, k_w, v_w, w[p + "in_proj_bias"], out))  # noqa: B023
            activation = F.gelu if s.activation == "gelu" else F.relu

            def feed(x):
                h = activation(F.linear(x, w[p + "linear1_weight"], w[p + "linear1_bias"]))  # noqa: B023
                return F.linear(h, w[p + "linear2_weight"], w[p + "linear2_bias"])  # noqa: B023

            t = around(t, p + "norm3_", feed)
        simr = x = shared(t, "output")
        count = len(s.head_widths()) - 1
        for i in range(count):
            x = F.linear(x, w[f"head.{i}.weight"], w[f"head.{i}.bias"])
            x = x if i == count - 1 else F.relu(x)
        if s.readout == "first":
            x, simr = x[0], simr[0]
        return (x if s.outputs > 1 else x.squeeze(-1)), simr


def case(spec: DecoderSpec, dtype: torch.dtype = torch.float64, draw: int = 0) -> tuple[Tensor, Tensor, DecoderWeights]:
    generator = torch.Generator().manual_seed(draw)
    memory = torch.randn(M, P, spec.memory_dim, generator=generator, dtype=torch.float64)
    shape = (Q, T, spec.width) if spec.self_attention else (Q, spec.width)
    queries = torch.randn(shape, generator=generator, dtype=torch.float64)
    weights = DecoderWeights.random(spec, seed=draw, std=1.5 * spec.width**-0.5, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = weights.map(lambda t: t.to(DEVICE, wide).requires_grad_())
    return memory.to(DEVICE, dtype).requires_grad_(), queries.to(DEVICE, dtype).requires_grad_(), weights


def one_by_one(
    memory: Tensor, queries: Tensor, weights: DecoderWeights, which: int, mask: Tensor | None = None
) -> Tensor:
    """The plain module on every pair, each query cut to the tokens that are there."""
    plain = Plain(weights)
    rows = []
    for m in memory:
        row = []
        for q, query in enumerate(queries):
            query = query if weights.spec.self_attention else query.unsqueeze(0)
            there = slice(None) if mask is None else mask[q]
            result = plain(m, query[there])[which]
            if weights.spec.readout == "all" and mask is not None:
                full = result.new_zeros(T, *result.shape[1:])
                result = full.index_put((mask[q].nonzero().squeeze(1),), result)
            row.append(result)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(out, leaves, cotangent.to(out), allow_unused=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_results_and_gradients(name: str, backend: str) -> None:
    memory, queries, weights = case(SPECS[name])
    leaves = [memory, queries, *weights.flat()]
    for which, function in enumerate((pair_logits, pair_simr)):
        truth = one_by_one(memory, queries, weights, which)
        # two blocks of queries and tiles of few memories
        out = function(memory, queries, weights, backend=backend, tile_pairs=3)
        truth = truth.reshape(out.shape)
        assert error(out, truth) < 1e-13
        for label, g, w in zip(
            ["memory", "queries", *parameter_names(weights.spec)], gradients(out, leaves), gradients(truth, leaves)
        ):
            if w is None:
                # simr leaves the head out; what is empty has no gradient
                assert g is None or not g.numel() or not g.any(), label
            elif label.endswith("in_proj_bias"):
                # the key bias cancels
                torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)
            elif w.numel():
                assert error(g, w) < 1e-11, label


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens_may_hold_anything(backend: str) -> None:
    spec = SPECS["tokens-all"]
    memory, queries, weights = case(spec)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], device=DEVICE).bool()
    spoilt = queries.detach().masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    out = pair_logits(memory, spoilt, weights, query_mask=mask, backend=backend)
    truth = one_by_one(memory, queries, weights, 0, mask)
    assert error(out, truth) < 1e-13
    assert not out[:, ~mask].any()
    leaves = [memory, *weights.flat()]
    for g, w in zip(gradients(out, [spoilt, *leaves]), gradients(truth, [queries, *leaves])):
        if w is not None and w.numel():
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["post", "albef", "tokens-all"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_equal_rows_collapse(name: str, dropout_p: float, backend: str) -> None:
    memory, queries, weights = case(SPECS[name])
    full = memory.detach()
    full[:, 3:] = full[:, 3:4]
    count = torch.tensor([[1, 1, 1, 3], [1, 1, 1, 3], [1, 0, 1, 3]], dtype=torch.int32, device=DEVICE)
    whole = torch.tensor([[1] * 6, [1] * 6, [1, 0, 1, 1, 1, 1]], dtype=torch.int32, device=DEVICE)
    options = {"dropout_p": dropout_p, "seed": 3, "backend": backend}
    out = pair_logits(full[:, :4], queries, weights, row_count=count, **options)
    truth = pair_logits(full, queries, weights, row_count=whole, **options)
    assert error(out, truth) < 1e-12
    maps = pair_attention(full[:, :4], queries, weights, row_count=count, backend=backend)
    plain = pair_attention(full, queries, weights, row_count=whole, backend=backend)
    assert maps.shape == (2, M, Q, *([T] if SPECS[name].self_attention else []), 6)
    torch.testing.assert_close(maps, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["post", "albef", "tokens-all"])
def test_dropout_does_not_see_tiles_lists_shards_or_backends(name: str) -> None:
    memory, queries, weights = case(SPECS[name])
    leaves = [memory, queries, *weights.flat()]
    options = {"dropout_p": 0.3, "seed": 2**40 + 7, "direction": 1}
    truth = pair_logits(memory, queries, weights, backend="reference", **options)
    wanted = gradients(truth, leaves)
    assert error(truth, pair_logits(memory, queries, weights)) > 1e-2
    for tile in (None, 1, 5):
        out = pair_logits(memory, queries, weights, tile_pairs=tile, backend="torch", **options)
        assert error(out, truth) < 1e-13
        for g, w in zip(gradients(out, leaves), wanted):
            if w is not None and w.numel():
                torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)
    pairs = torch.tensor([[2, 1], [0, 3], [2, 0], [2, 1]], device=DEVICE)
    for backend in BACKENDS:
        out = pair_logits(memory, queries, weights, pairs=pairs, backend=backend, **options)
        assert error(out, truth[pairs[:, 0], pairs[:, 1]]) < 1e-13
        part = pair_logits(
            memory[1:], queries[2:], weights, memory_offset=1, query_offset=2, backend=backend, **options
        )
        assert error(part, truth[1:, 2:]) < 1e-13
        none = pair_logits(memory[:0], queries, weights, backend=backend, **options)
        assert none.shape == (0, *truth.shape[1:])


def test_masks_of_tokens_are_rows_of_the_counter() -> None:
    """Token 0 has the bits of a query without tokens; another token those of columns 2^19 further on."""
    seed, index = torch.tensor([5]), torch.tensor([[0], [1]])
    masks = PairMasks(index, torch.tensor([[3, 4]]), 9, seed, 0.4, 0, torch.float64)
    plain = masks.features_kept(Site.AFTER_FFN, 1, 20)
    spec = DecoderWeights.random(TOKENS)
    from carzero.ops.call import Params

    of_tokens = masks.for_tokens(3, Params.of(spec)).features_kept(Site.AFTER_FFN, 1, 20)
    assert torch.equal(of_tokens[:, :, 0], plain)
    far = kept(seed, Site.AFTER_FFN, 1, 0, 0, index[1], torch.tensor([4]), (2 << 19) + 20, 0.4)
    assert torch.equal(of_tokens[1, 1, 2], far[0, 2 << 19 :])
    assert not torch.equal(of_tokens[:, :, 1], plain)


@pytest.mark.parametrize("name", ["post", "albef"])
def test_projected_memory(name: str) -> None:
    memory, queries, weights = case(SPECS[name])
    with torch.no_grad():
        bank = project_memory(memory, weights)
        for backend in BACKENDS:
            out = pair_logits(bank, queries, weights, backend=backend)
            assert error(out, pair_logits(memory, queries, weights, backend=backend)) < 1e-13


@pytest.mark.parametrize("name", ["post", "albef"])
def test_sixteen_bits_lose_no_more_than_plain_torch(name: str) -> None:
    memory, queries, weights = case(SPECS[name])
    truth = pair_logits(memory, queries, weights, backend="reference")
    narrow = memory.detach().bfloat16(), queries.detach().bfloat16()
    with torch.no_grad():
        ours = pair_logits(*narrow, weights.to(torch.float32), backend="torch")
        plain = DecoderWeights.from_flat(weights.spec, [t.bfloat16() for t in weights.flat()])
        theirs = one_by_one(*narrow, plain, 0).reshape(truth.shape)
    assert error(ours, truth) < 1.5 * error(theirs, truth) + 4e-3


def test_opcheck_and_compile() -> None:
    for name in ("post", "albef"):
        memory, queries, weights = case(SPECS[name], torch.float32)
        mask = None
        if weights.spec.self_attention:
            mask = torch.ones(Q, T, dtype=torch.bool, device=DEVICE)
            mask[1, 3:] = False
        layers = [t for layer in weights.layers for t in layer]
        arguments = (
            memory, queries, None, None, weights.norm_weight, weights.norm_bias, layers, list(weights.head), None, 4,
            weights.spec.eps, 0.2, torch.tensor([4], device=DEVICE), 1, 5, 6, False, False, "torch", "full", 3, 0, mask,
            weights.spec.encode(),
        )  # fmt: skip
        found = torch.library.opcheck(torch.ops.carzero.pair_logits.default, arguments)
        assert set(found.values()) == {"SUCCESS"}

        def ask(m: Tensor, q: Tensor, weights: DecoderWeights = weights, mask: Tensor | None = mask) -> Tensor:
            return pair_logits(m, q, weights, query_mask=mask)

        compiled = torch.compile(ask, fullgraph=True)
        torch.testing.assert_close(compiled(memory, queries), ask(memory, queries))


def test_only_inputs_weights_and_one_block_are_kept() -> None:
    """The graph saves no more for 64 times the pairs than their inputs."""

    def saved(queries: int) -> int:
        spec = SPECS["albef"]
        weights = DecoderWeights.random(spec).map(lambda t: t.requires_grad_())
        memory = torch.randn(4, P, spec.memory_dim, requires_grad=True)
        asked = torch.randn(queries, T, spec.width, requires_grad=True)
        total = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            pair_logits(memory, asked, weights, backend="torch")
        return total

    assert saved(64) - saved(1) == 63 * T * 32


def test_a_head_of_ones_own_leaves_representations_and_maps_to_every_backend() -> None:
    memory, queries, weights = case(replace(SPECS["outputs"], width=64, head_hidden=(8,)), torch.float32)
    usual = replace(weights.spec, head="linear", outputs=1)
    same = DecoderWeights.from_flat(usual, [*weights.flat()[:-4], weights.head[0][:1], weights.head[1][:1]])
    backend, _ = choose("auto", device=DEVICE, dtype=torch.float32, width=64, heads=4)
    for function in (pair_simr, pair_attention):
        ours, theirs = (function(memory, queries, w, backend=backend) for w in (weights, same))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert weights.spec.other() is not None
    assert weights.spec.body().other() is None


def test_the_reason_says_which_field(monkeypatch) -> None:
    monkeypatch.delenv("CARZERO_BACKEND", raising=False)
    spec = replace(SPECS["gelu"], head_hidden=(8,))
    need = {"device": torch.device("cpu"), "dtype": torch.float32, "width": 64, "heads": 4, "other": spec.other()}
    name, reason = choose("auto", **need)
    assert name == "torch"
    assert reason.startswith("torch: plain torch; not ")
    memory, queries, weights = case(SPECS["albef"], torch.float32)
    if "native extension loaded" in choose("auto", **{**need, "other": None})[1]:
        assert "not cpp: fuses CARZero's decoder only, and this one has head_hidden=(8,), activation='gelu'" in reason
        with pytest.raises(
            RuntimeError, match=r"backend='cpp' was asked for.*fuses CARZero's decoder only.*Use backend='torch'"
        ):
            pair_logits(memory, queries, weights, backend="cpp")
    with pytest.raises(
        ValueError, match=r"recompute='layer' keeps a tape of CARZero's decoder, and this one has activ"
    ):
        pair_logits(memory, queries, weights, recompute="layer")
    assert BASE.other() is None
    assert BASE.encode() == ""
    assert decode(spec.encode()) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "tanh"}, "activation must be 'relu' or 'gelu', got 'tanh'"),
        ({"norm_on": ("memory", "keys")}, "norm_on must hold any of memory, queries, output"),
        ({"norm_on": "memory"}, "norm_on must hold any of memory, queries, output, got 'memory'"),
        ({"dropout_on": ("ffn",)}, "dropout_on must hold any of attention, projection, hidden, head"),
        ({"readout": "all"}, "readout='all' is of a query's tokens"),
        ({"memory_width": 20}, "one LayerNorm cannot serve memory rows of width 20 and queries of width 32"),
        ({"memory_width": 0, "norm_on": ()}, "memory_width must be a positive int or None, got 0"),
        ({"outputs": 0}, "outputs must be a positive int, got 0"),
        ({"head_hidden": ()}, "head_hidden must be one to three positive widths"),
    ],
)
def test_specs_that_make_no_sense(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **fields)


def test_calls_that_do_not_fit_the_spec() -> None:
    memory, queries, weights = case(SPECS["tokens-first"])
    with pytest.raises(ValueError, match=r"queries must be \[Q, T, D\], as the weights' spec has self_attention=True"):
        pair_logits(memory, queries[:, 0], weights)
    with pytest.raises(ValueError, match=r"query_mask must be bool of shape \[Q, T\] = \(4, 5\)"):
        pair_logits(memory, queries, weights, query_mask=torch.ones(4, 5, device=DEVICE))
    with pytest.raises(ValueError, match="a query must have at least one token"):
        pair_logits(memory, queries[:, :0], weights)
    memory, queries, weights = case(SPECS["memory-width"])
    with pytest.raises(ValueError, match="query_mask is of a query's tokens"):
        pair_logits(memory, queries, weights, query_mask=torch.ones(4, 5, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match=r"memory and weights must have the same width D.*weights of width 20"):
        pair_logits(torch.randn(2, 3, 32, dtype=torch.float64, device=DEVICE), queries, weights)
