"""`carzero.patch` on published-style fusion modules."""

from __future__ import annotations

import pytest
import torch
from published_fusion import Fusion, TransformerDecoderLayer, TransformerDecoderWoSelfAttenLayer
from torch import Tensor, nn

import carzero
from carzero.dropin import unpatch
from carzero.errors import UserError

VARIANTS = {
    "carzero-mlp": {"layer": TransformerDecoderWoSelfAttenLayer},
    "carzero-linear": {"layer": TransformerDecoderWoSelfAttenLayer, "mlp": False},
    "carzero-self-attention": {"layer": TransformerDecoderLayer, "mlp": False},
    "vecl": {"layer": TransformerDecoderWoSelfAttenLayer, "outputs": 3},
    "kad": {"layer": TransformerDecoderLayer, "mlp": False, "outputs": 2},
}


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(3, 7, 32, generator=generator, dtype=torch.float64).requires_grad_()
    return memory, torch.randn(5, 32, generator=generator, dtype=torch.float64).requires_grad_()


def gradients(module: Fusion, out: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(out, [*leaves, *module.parameters()], cotangent, allow_unused=True))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_results_and_gradients_are_the_modules_own(variant: str, backend: str) -> None:
    torch.manual_seed(0)
    module = Fusion(**VARIANTS[variant]).double().eval()
    leaves = list(inputs())
    truth, maps = module(*leaves, return_atten=True)
    wanted = gradients(module, truth, leaves)
    (done,) = carzero.patch(module, backend=backend)
    assert done.difference < 1e-12
    out, ours = module(*leaves, return_atten=True)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(*leaves, use_MLP=False), _unpatched(module, leaves), rtol=1e-12, atol=1e-12)
    for theirs, own in zip(maps, ours, strict=True):
        torch.testing.assert_close(own, theirs.detach(), rtol=1e-12, atol=1e-12)
    names = ["memory", "queries", *(name for name, _ in module.named_parameters())]
    for name, g, w in zip(names, gradients(module, out, leaves), wanted, strict=True):
        # the key bias cancels: the module's gradient of it is rounding, ours 0
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def _unpatched(module: Fusion, leaves: list[Tensor]) -> Tensor:
    return type(module).forward(module, *leaves, use_MLP=False)


def test_state_dict_optimiser_and_other_instances_stay() -> None:
    torch.manual_seed(0)
    module, other = Fusion(), Fusion()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = list(module.parameters())
    carzero.patch(module)
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert module.training
    assert "forward" not in vars(other)
    # weights that are loaded later are the ones that compute
    module.eval()
    memory, queries = (t.detach().float() for t in inputs())
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(module(memory, queries), other.eval()(memory, queries), rtol=1e-4, atol=1e-5)


def test_parents_are_searched_and_unpatch_gives_the_forward_back() -> None:
    model = nn.ModuleDict({"a": Fusion(), "b": nn.Sequential(Fusion(outputs=3))})
    assert [p.name for p in carzero.patch(model)] == ["a", "b.0"]
    with pytest.raises(UserError, match="not patched yet"):
        carzero.patch(model)
    assert unpatch(model) == 2
    assert unpatch(model) == 0
    assert [p.name for p in carzero.patch(model)] == ["a", "b.0"]


def test_training_drops_at_the_modules_rate() -> None:
    torch.manual_seed(0)
    module = Fusion(dropout=0.3).double().train()
    memory, queries = inputs()
    expected = torch.stack([module(memory, queries) for _ in range(400)]).detach()
    carzero.patch(module)
    ours = torch.stack([module(memory, queries) for _ in range(400)]).detach()
    assert not torch.equal(ours[0], ours[1])
    # other masks of the same rate: mean and spread agree to their standard errors
    spread = (ours.var(0) + expected.var(0)).sqrt() / 400**0.5
    assert (((ours.mean(0) - expected.mean(0)) / spread).abs() < 4.5).all()
    ratio = ours.std(0).mean() / expected.std(0).mean()
    assert 0.85 < float(ratio) < 1.15
    torch.manual_seed(5)
    first = module(memory, queries)
    torch.manual_seed(5)
    assert torch.equal(first, module(memory, queries))


def test_kill_switch(monkeypatch) -> None:
    module = Fusion().double().eval()
    carzero.patch(module)
    called = []
    from carzero.ops import reference

    real = reference.pair_logits
    monkeypatch.setattr(reference, "pair_logits", lambda *a: called.append(1) or real(*a))
    monkeypatch.setenv("CARZERO_BACKEND", "reference")
    module(*inputs())
    assert called == [1]


def test_what_the_op_does_not_have_is_refused_and_nothing_patched() -> None:
    with pytest.raises(UserError, match=r"carzero\.patch: Linear holds no module with decoder, decoder_norm"):
        carzero.patch(nn.Linear(2, 2))

    lies = Fusion()
    lies.decoder.layers[0].activation = torch.tanh
    with pytest.raises(UserError, match="ReLU and the exact GELU, and this decoder's activation is tanh"):
        carzero.patch(lies)

    class Scaled(Fusion):
        def forward(self, image_features, text_features):
            return 2.0 * super().forward(image_features, text_features)

    module = Scaled()
    with pytest.raises(UserError, match=r"gives other results through the op: they differ by .* It was not patched"):
        carzero.patch(module)
    assert "forward" not in vars(module)

    class Asks(Fusion):
        def forward(self, image_features, text_features, temperature=1.0):
            return super().forward(image_features, text_features)

    with pytest.raises(UserError, match="must take memory, queries and any of pos"):
        carzero.patch(Asks())

    two = Fusion()
    two.decoder.norm = nn.LayerNorm(32)
    with pytest.raises(UserError, match=r"decoder\.norm must be its decoder_norm"):
        carzero.patch(two)

    uneven = Fusion()
    uneven.dropout_feas.p = 0.5
    with pytest.raises(UserError, match=r"one dropout rate serves all places, got \[0\.1, 0\.5\]"):
        carzero.patch(uneven)


def test_arguments_that_the_op_has_no_use_for_are_errors() -> None:
    module = Fusion().double().eval()
    carzero.patch(module)
    memory, queries = inputs()
    with pytest.raises(UserError, match="takes no pos and repeats the queries itself"):
        module(memory, queries, inside_repeat=False)
    with pytest.raises(UserError, match="takes no pos"):
        module(memory, queries, torch.zeros(1))
