"""`carzero.patch`: a published-style decoder module computes through the op, with its own parameters and names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from carzero.errors import UserError
from carzero.ops import DecoderSpec, DecoderWeights, pair_attention, pair_logits, pair_simr

from .weights import decoder_weights

_PARTS = ("decoder", "decoder_norm", "mlp_head", "dropout_feas")
_KNOWN = ("pos", "return_atten", "inside_repeat", "use_MLP")
# what a float32 forward of some hundred sums may differ by, relative to the largest result
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Patch:
    """What `patch` did to one module.

    Args:
        name: where it is, as in ``named_modules``.
        spec: the decoder that was found.
        difference: largest difference of the results before and after, on random inputs, over the largest result.
    """

    name: str
    spec: DecoderSpec
    difference: float


def patch(module: nn.Module, *, backend: str = "auto") -> list[Patch]:
    """Let the published CARZero's fusion modules, KAD's and VECL's, in a model or alone, compute through `carzero.ops`.

    *Equivalent to* the modules' own forward ``(memory [M, P, D], queries [Q, D]) -> [M, Q, C]``, with ``return_atten``
    and ``use_MLP`` where they have them. Parameters, names and state dict stay as they are, so checkpoints load before
    and after, and an optimiser goes on with the same tensors. While training, dropout acts at the same places with the
    module's rate; its masks are drawn from counters, so they are others than the module's. Maps have no gradient.

    Args:
        module: a module with ``decoder``, ``decoder_norm``, ``mlp_head`` and ``dropout_feas``, or one that holds some.
        backend: as in `carzero.ops.pair_logits`; the environment variable CARZERO_BACKEND sets what ``"auto"`` is.

    Returns:
        What was patched. Each was run before and after on the same random inputs; `Patch.difference` is what came out.

    Raises:
        UserError: nothing to patch, a part that the op does not have, or results that differ; nothing is patched then.
    """
    found = {n: m for n, m in module.named_modules() if all(hasattr(m, p) for p in _PARTS) and not _is_patched(m)}
    if not found:
        raise UserError(
            f"carzero.patch: {type(module).__name__} holds no module with {', '.join(_PARTS)} that is not patched yet: "
            "it is none of the published decoders. See carzero.dropin.decoder_weights for others."
        )
    forwards = {name: _forward(one, backend) for name, one in found.items()}
    patches = [Patch(name, _weights(one).spec, _difference(name, one, forwards[name])) for name, one in found.items()]
    for name, one in found.items():
        # on the instance: the class and its other instances stay as they are
        one.forward = forwards[name]
    return patches


def unpatch(module: nn.Module) -> int:
    """Give patched modules their own forward back; returns how many there were."""
    found = [m for m in module.modules() if _is_patched(m)]
    for one in found:
        del one.forward
    return len(found)


def _is_patched(module: nn.Module) -> bool:
    return hasattr(vars(module).get("forward"), "carzero_backend")


def _weights(module: Any) -> DecoderWeights:
    norm_on = ("memory", "queries", "output")
    weights = decoder_weights(module.decoder, module.mlp_head, norm=module.decoder_norm, norm_on=norm_on)
    spec = dataclasses.replace(weights.spec, dropout_on=("attention", "projection", "hidden", "head"))
    return dataclasses.replace(weights, spec=spec)


def _forward(module: Any, backend: str) -> Callable:
    signature = inspect.signature(module.forward)
    names = list(signature.parameters)
    strange = [name for name in names[2:] if name not in _KNOWN]
    if len(names) < 2 or strange:
        raise UserError(
            f"carzero.patch: {type(module).__name__}.forward must take memory, queries and any of "
            f"{', '.join(_KNOWN)}, got {', '.join(names)}."
        )
    if module.decoder.norm is not None and module.decoder.norm is not module.decoder_norm:
        raise UserError(
            f"carzero.patch: {type(module).__name__}.decoder.norm must be its decoder_norm, one LayerNorm for memory, "
            "queries and output; these are two. Use carzero.dropin.decoder_weights with norm_on=('output',)."
        )
    rate = _dropout(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        memory, queries, *_ = bound.arguments.values()
        given = bound.arguments
        if given.get("pos") is not None or not given.get("inside_repeat", True):
            raise UserError(
                f"carzero.patch: the patched {type(module).__name__} takes no pos and repeats the queries itself; "
                "carzero.dropin.unpatch gives the module its own forward back."
            )
        return _run(module, memory, queries, rate if module.training else 0.0, backend, given)

    forward.carzero_backend = backend  # type: ignore[attr-defined]
    return forward


def _run(module: Any, memory: Tensor, queries: Tensor, rate: float, backend: str, given: dict[str, Any]) -> Any:
    weights = _weights(module)
    seed = torch.randint(2**62, (1,), dtype=torch.int64, device=queries.device) if rate else None
    # KAD's and MedKLIP's queries are the tokens of one query: they attend to each other
    asked = queries.unsqueeze(0) if weights.spec.self_attention else queries
    options: dict[str, Any] = {"dropout_p": rate, "seed": seed, "backend": backend}
    if given.get("use_MLP", True):
        out = pair_logits(memory, asked, weights, **options)
        out = out if weights.spec.outputs > 1 else out.unsqueeze(-1)
    else:
        out = module.dropout_feas(pair_simr(memory, asked, weights, **options))
    out = out.squeeze(1) if weights.spec.self_attention else out
    if not given.get("return_atten", False):
        return out
    maps = pair_attention(memory, asked, weights, backend=backend)
    return out, list(maps.squeeze(2) if weights.spec.self_attention else maps)


def _dropout(module: nn.Module) -> float:
    """The one rate of all its dropouts."""
    rates = {m.p for m in module.modules() if isinstance(m, nn.Dropout)}
    rates |= {m.dropout for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    if len(rates) > 1:
        raise UserError(f"carzero.patch: one dropout rate serves all places, got {sorted(rates)}.")
    return rates.pop() if rates else 0.0


def _difference(name: str, module: Any, forward: Callable) -> float:
    """Largest difference of the forwards on random inputs, relative to the largest result, without dropout."""
    weights = _weights(module)
    like = weights.layers[0][0]
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 3, weights.spec.memory_dim, generator=generator).to(like)
    queries = torch.randn(4, weights.spec.width, generator=generator).to(like)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            before, after = module(memory, queries), forward(memory, queries)
    finally:
        for part, mode in modes.items():
            part.training = mode
    difference = float((before - after).abs().max() / before.abs().max())
    tolerance = _TOLERANCE if like.dtype in (torch.float32, torch.float64) else 0.05
    # a NaN is no agreement
    if before.shape != after.shape or not difference <= tolerance:
        raise UserError(
            f"carzero.patch: {name or type(module).__name__} gives other results through the op: they differ by "
            f"{difference:.1e} of the largest, of {tolerance:.0e} allowed. It was not patched; please report its class."
        )
    return difference
