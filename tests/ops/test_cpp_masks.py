"""Dropout masks of the native backend, site by site, bit for bit against `carzero.ops.rng`.

A mask shows in a gradient that is exactly zero where its element was dropped and nowhere else. Each case is arranged so
that nothing else makes a zero: ReLUs are held open by large biases, and one pair is differentiated at a time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from carzero.ops import DecoderSpec, DecoderWeights, pair_logits
from carzero.ops.rng import Site, lanes, threshold
from carzero.ops.spec import parameter_names

SPEC = DecoderSpec(width=96, layers=2, heads=3, ffn=56, head_hidden=(72, 40, 24))
P_DROP, SEED, DIRECTION, MEMORY_OFFSET, QUERY_OFFSET = 0.3, -(2**40) - 5, 1, 7, 2**31 + 3
PAIRS = torch.tensor([[2, 1], [0, 3], [2, 0]])


@pytest.fixture(autouse=True)
def _cpp(need) -> None:
    need("cpp")


def open_weights(spec: DecoderSpec = SPEC) -> DecoderWeights:
    weights = DecoderWeights.random(spec, seed=3, std=0.05)
    for name, value in zip(parameter_names(spec), weights.flat()):
        if "linear1_bias" in name or (name.startswith("head") and name.endswith("bias")):
            value += 10.0
        elif name.startswith("head"):
            value *= 0.1
    return weights


def gradients(weights: DecoderWeights, pair: Tensor, **options) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(3, 21, weights.spec.width, generator=generator).requires_grad_()
    queries = torch.randn(4, weights.spec.width, generator=generator)
    weights = weights.map(lambda t: t.requires_grad_())
    out = pair_logits(
        memory, queries, weights, pairs=pair[None], dropout_p=P_DROP, seed=SEED, direction=DIRECTION,
        memory_offset=MEMORY_OFFSET, query_offset=QUERY_OFFSET, backend="cpp", **options,
    )  # fmt: skip
    grads = torch.autograd.grad(out, [memory, *weights.flat()])
    return dict(zip(["memory", *parameter_names(weights.spec)], grads))


def kept(site: Site, layer: int, pair: Tensor, columns: int, head: int = 0) -> Tensor:
    memory, query = pair[0] + MEMORY_OFFSET, pair[1] + QUERY_OFFSET
    return lanes(torch.tensor(SEED), site, layer, DIRECTION, head, memory, query, columns) >= threshold(P_DROP)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_feature_masks(pair: Tensor) -> None:
    grads = gradients(open_weights(), pair)
    sites = [("head.0.bias", Site.HEAD_HIDDEN_1, 0), ("head.1.bias", Site.HEAD_HIDDEN_2, 0)]
    sites += [("head.2.bias", Site.HEAD_HIDDEN_3, 0)]
    for layer in range(SPEC.layers):
        sites += [(f"layers.{layer}.out_proj_bias", Site.AFTER_OUT_PROJECTION, layer)]
        sites += [(f"layers.{layer}.linear1_bias", Site.FFN_HIDDEN, layer)]
        sites += [(f"layers.{layer}.linear2_bias", Site.AFTER_FFN, layer)]
    for name, site, layer in sites:
        expected = kept(site, layer, pair, grads[name].numel())
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(grads[name] != 0, expected), name


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_mask_before_the_head(pair: Tensor) -> None:
    grads = gradients(open_weights(replace(SPEC, head="linear")), pair)
    assert torch.equal(grads["head.0.weight"][0] != 0, kept(Site.BEFORE_HEAD, 0, pair, SPEC.width))


@pytest.mark.parametrize("head", range(SPEC.heads))
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_attention_masks(pair: Tensor, head: int) -> None:
    # a row's gradient comes through the values of one head alone: no key projection, no other head's values
    weights = open_weights(replace(SPEC, layers=1))
    d, k = SPEC.width, SPEC.head_width
    in_proj = weights.layers[0][0]
    values = in_proj[2 * d :].clone()
    in_proj[d:] = 0
    in_proj[2 * d + head * k : 2 * d + (head + 1) * k] = values[head * k : (head + 1) * k]
    grad = gradients(weights, pair)["memory"][pair[0]]
    assert torch.equal((grad != 0).any(-1), kept(Site.ATTENTION, 0, pair, 21, head))
    # rows that stand for several: dropped only where all of their lanes are
    count = torch.zeros(3, 21, dtype=torch.int32)
    count[:, :4] = 1
    count[:, 4], count[:, 7], count[:, 9] = 3, 2, 40
    grad = gradients(weights, pair, row_count=count)["memory"][pair[0]]
    lane = kept(Site.ATTENTION, 0, pair, 49, head)
    expected = torch.tensor([bool(n) and bool(lane[p : p + n].any()) for p, n in enumerate(count[0].tolist())])
    assert torch.equal((grad != 0).any(-1), expected)
