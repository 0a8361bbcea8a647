"""SimRDecoder: lengths, maps, published weights, dropout seeds, packed weights."""

from __future__ import annotations

import copy

import pytest
import torch
from published_model import decoder_state, perturbed, published_decoder

from carzero import SimRDecoder
from carzero.errors import UserError
from carzero.models.config import DecoderConfig

CONFIG = DecoderConfig(width=64, layers=2, heads=4, ffn=96, head_hidden=(48, 32, 16))


@pytest.fixture
def decoder() -> SimRDecoder:
    torch.manual_seed(0)
    return perturbed(SimRDecoder(CONFIG)).double().eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    memory = torch.randn(3, 20, 64, dtype=torch.float64, generator=generator)
    return memory, torch.randn(5, 64, dtype=torch.float64, generator=generator)


def test_logits_and_maps_equal_the_published_decoder(decoder, inputs):
    memory, queries = inputs
    logits, maps = decoder(memory, queries, return_attention=True)
    want, want_maps = published_decoder(decoder)(memory, queries)
    torch.testing.assert_close(logits, want, rtol=1e-11, atol=1e-11)
    assert maps.shape == (2, 3, 5, 20)
    # maps may be computed in float32
    torch.testing.assert_close(maps.double(), torch.stack(want_maps), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [[3, 20, 1], [1, 2, 3], [20, 20, 20], [0, 5, 19]])
def test_lengths_equal_zero_rows(decoder, inputs, lengths):
    memory, queries = inputs
    lengths = torch.tensor(lengths)
    zero = torch.arange(20) >= lengths[:, None]
    filled = memory.masked_fill(zero[..., None], 0.0)
    # what lies beyond the length must not matter
    memory = memory.masked_fill(zero[..., None], float("nan")).requires_grad_()
    queries.requires_grad_()
    logits, maps = decoder(memory, queries, lengths=lengths, return_attention=True)
    filled.requires_grad_()
    reference_queries = queries.detach().clone().requires_grad_()
    want, want_maps = published_decoder(decoder)(filled, reference_queries)
    torch.testing.assert_close(logits, want, rtol=1e-11, atol=1e-11)
    assert maps.shape == (2, 3, 5, 20), "maps come back at the full P"
    torch.testing.assert_close(maps.double(), torch.stack(want_maps), rtol=1e-5, atol=1e-7)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    got = torch.autograd.grad((logits * weight).sum(), (memory, queries))
    expected = torch.autograd.grad((want * weight).sum(), (filled, reference_queries))
    assert (got[0][zero] == 0).all(), "rows beyond the length get zero gradient"
    torch.testing.assert_close(got[0][~zero], expected[0][~zero], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-9, atol=1e-12)


def test_lengths_under_dropout_equal_zero_rows(decoder, inputs):
    """The masks of collapsed rows are those of the rows they stand for."""
    memory, queries = inputs
    lengths = torch.tensor([3, 20, 1])
    zero = torch.arange(20) >= lengths[:, None]
    filled = memory.masked_fill(zero[..., None], 0.0)
    decoder.train()
    got = decoder(memory, queries, lengths=lengths, seed=7, direction=1, memory_offset=2, query_offset=9)
    want = decoder(filled, queries, seed=7, direction=1, memory_offset=2, query_offset=9)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_lengths_say_what_is_wrong(decoder, inputs):
    memory, queries = inputs
    with pytest.raises(UserError, match="one number for each of the 3 memories, got shape"):
        decoder(memory, queries, lengths=torch.tensor([1, 2]))
    with pytest.raises(UserError, match="between 0 and P = 20, got values from 1 to 21"):
        decoder(memory, queries, lengths=torch.tensor([1, 2, 21]))
    with pytest.raises(UserError, match="leave lengths out"):
        decoder(memory, queries, lengths=torch.ones(3), row_count=torch.ones(3, 20, dtype=torch.int32))


def test_projected_memory_and_pairs(decoder, inputs):
    memory, queries = inputs
    with torch.no_grad():
        want = decoder(memory, queries)
        torch.testing.assert_close(decoder(decoder.project(memory), queries), want, rtol=1e-11, atol=1e-11)
        pairs = torch.tensor([[2, 0], [0, 4], [2, 0]])
        got = decoder(memory, queries, pairs=pairs)
    torch.testing.assert_close(got, want[pairs[:, 0], pairs[:, 1]], rtol=1e-11, atol=1e-11)


def test_training_draws_a_fresh_seed_from_torchs_generator(decoder, inputs):
    memory, queries = inputs
    decoder.train()
    torch.manual_seed(11)
    first, second = decoder(memory, queries), decoder(memory, queries)
    assert (first - second).abs().max() > 1e-6
    torch.manual_seed(11)
    assert torch.equal(decoder(memory, queries), first)
    assert torch.equal(decoder(memory, queries, seed=3), decoder(memory, queries, seed=torch.tensor([3])))
    decoder.eval()
    assert torch.equal(decoder(memory, queries), decoder(memory, queries, seed=3)), "no dropout in evaluation"


def test_packed_weights_follow_the_parameters(decoder, inputs):
    """Weights packed once for inference are packed again after a step, a load or a cast."""
    memory, queries = inputs
    with torch.no_grad():
        before = decoder(memory, queries)
        packed = decoder._packed.get(decoder.weights(), torch.float64)
        assert decoder._packed.get(decoder.weights(), torch.float64) is packed, "nothing has changed"
        decoder.layers[1].linear1_weight.mul_(1.5)
        stepped = decoder(memory, queries)
        assert (before - stepped).abs().max() > 1e-6
        want = published_decoder(decoder)(memory, queries)[0]
        torch.testing.assert_close(stepped, want, rtol=1e-11, atol=1e-11)
        decoder.load_state_dict({name: value * 0.9 for name, value in decoder.state_dict().items()})
        want = published_decoder(decoder)(memory, queries)[0]
        torch.testing.assert_close(decoder(memory, queries), want, rtol=1e-11, atol=1e-11)


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    decoder = SimRDecoder(DecoderConfig(width=256, ffn=512, head_hidden=(256, 256, 128)))
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("weight"):
            bound = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.std() - 0.02) < bound + 1e-4, name
        elif "proj_bias" in name:
            assert parameter.abs().max() == 0
        else:
            fan_in = decoder.get_parameter(name.removesuffix("bias") + "weight").shape[1]
            assert 0 < parameter.abs().max() <= fan_in**-0.5


@pytest.mark.parametrize("prefix", ["", "fusion_module.", "CARZero.fusion_module."])
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_from_upstream(inputs, prefix, head):
    memory, queries = inputs
    torch.manual_seed(0)
    config = DecoderConfig(width=64, layers=3, heads=2, ffn=80, head=head, head_hidden=(48, 32, 16))
    source = perturbed(SimRDecoder(config)).double().eval()
    state = {prefix + key: value for key, value in decoder_state(source).items()}
    state[prefix + "logit_scale"] = torch.tensor(2.66)
    state[prefix + "decoder.layers.0.self_attn.in_proj_weight"] = torch.zeros(192, 64)
    state[prefix + "decoder.layers.2.norm1.weight"] = torch.zeros(64)
    if prefix:
        state["CARZero.text_encoder.model.embeddings.LayerNorm.weight"] = torch.zeros(64)
    got = SimRDecoder.from_upstream(state, heads=2).eval()
    assert got.spec == config.spec if head == "mlp" else (got.spec.head, got.spec.layers) == ("linear", 3)
    assert torch.equal(got(memory, queries), source(memory, queries))
    with torch.no_grad():
        got.norm.weight.zero_()
    assert source.norm.weight.abs().max() > 0, "the decoder owns its weights"


def test_from_upstream_is_strict(decoder):
    state = dict(decoder_state(decoder))
    with pytest.raises(UserError, match=r"expected one key ending in 'decoder\.layers\.0.*found 0"):
        SimRDecoder.from_upstream({})
    with pytest.raises(UserError, match=r"1 missing and 0 unknown; missing decoder\.layers\.1\.linear2\.bias"):
        SimRDecoder.from_upstream({k: v for k, v in state.items() if k != "decoder.layers.1.linear2.bias"})
    with pytest.raises(UserError, match="0 missing and 1 unknown; unknown mlp_head_extra"):
        SimRDecoder.from_upstream({**state, "mlp_head_extra": torch.zeros(1)})
    with pytest.raises(UserError, match="one LayerNorm under two names"):
        SimRDecoder.from_upstream({**state, "decoder_norm.weight": torch.zeros(64)})
    with pytest.raises(UserError, match=r"decoder\.layers\.1\.linear1\.bias must have shape \(96,\), got \(95,\)"):
        SimRDecoder.from_upstream({**state, "decoder.layers.1.linear1.bias": torch.zeros(95)})


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(decoder, inputs, training):
    memory, queries = inputs
    decoder.train(training)
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    seed, lengths = torch.tensor([3]), torch.tensor([3, 20, 1])
    got = compiled(memory, queries, lengths=lengths, seed=seed)
    torch.testing.assert_close(got, decoder(memory, queries, lengths=lengths, seed=seed), rtol=1e-11, atol=1e-11)


def test_a_copy_has_packed_weights_of_its_own(decoder, inputs):
    memory, queries = inputs
    with torch.no_grad():
        want = decoder(memory, queries)
        twin = copy.deepcopy(decoder)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(twin(memory, queries), published_decoder(twin)(memory, queries)[0])
        assert torch.equal(decoder(memory, queries), want)


def test_autocast_in_evaluation(decoder, inputs):
    """Packed for autocast's dtype: float32 logits, near the published module's under the same autocast."""
    memory, queries = (x.float() for x in inputs)
    truth = published_decoder(decoder)(*inputs)[0]
    decoder = decoder.float()
    theirs = published_decoder(decoder)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, want = decoder(memory, queries), theirs(memory, queries)[0]
    assert got.dtype == torch.float32
    # the project's rule for 16 bits: at most 1.5 times the published module's own error, and a floor of 2^-9
    error, allowed = ((x - truth).norm() / truth.norm() for x in (got, want))
    assert error <= 1.5 * allowed + 2**-9
