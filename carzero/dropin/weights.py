"""The weights of other repositories' decoders, read off their modules; gradients flow into the modules' parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carzero.errors import UserError
from carzero.ops.spec import DecoderSpec, DecoderWeights

#: Layer classes that own a self-attention and never call it.
WITHOUT_SELF_ATTENTION = ("TransformerDecoderWoSelfAttenLayer",)


class _Layers(NamedTuple):
    """What one kind of layer says about the spec, and its tensors in the op's order."""

    fields: dict[str, Any]
    tensors: tuple[tuple[Tensor, ...], ...]


def decoder_weights(
    module: nn.Module | Sequence[nn.Module],
    head: nn.Module,
    *,
    norm: nn.LayerNorm | None = None,
    norm_on: Iterable[str] = ("output",),
    readout: str = "all",
) -> DecoderWeights:
    """A decoder's parameters as `carzero.ops` takes them; call it again after they were replaced, not after each step.

    *Equivalent to* the module's own forward on every pair, ``head(module(queries, memory))``, without dropout.

    Args:
        module: an `nn.TransformerDecoder` or one of its kind (``layers`` with ``multihead_attn``, ``linear1``, ...:
            KAD, MedKLIP, the published CARZero), or the layers of a BERT encoder with cross-attention
            (``crossattention``, ``intermediate``, ...: ALBEF, BLIP, Hugging Face).
        head: `nn.Linear`, or an `nn.Sequential` of them with ReLU and dropout between.
        norm: the LayerNorm that `norm_on` is about; None: the module's own ``norm``, if it has one.
        norm_on: where that norm is applied; see `DecoderSpec`.
        readout: of a decoder with self-attention: ``"all"`` tokens of a query or the ``"first"`` alone.

    Returns:
        Weights whose spec says what was found.

    Raises:
        UserError: a part of the module is none that the op has; the sentence says which.
    """
    layers = list(module) if isinstance(module, nn.ModuleList | list | tuple) else list(getattr(module, "layers", ()))
    if not layers:
        raise UserError(
            f"decoder_weights: {type(module).__name__} has no layers: give an nn.TransformerDecoder or its kind, or "
            "the layers themselves (a BERT encoder's encoder.layer)."
        )
    found = (_bert if hasattr(layers[0], "crossattention") else _torch)(layers)
    if norm is None:
        norm = getattr(module, "norm", None)
    linears = _head(head)
    fields = dict(found.fields)
    if fields["self_attention"]:
        fields["readout"] = readout
    spec = DecoderSpec(
        width=found.tensors[0][2].shape[0],
        layers=len(layers),
        ffn=found.tensors[0][4].shape[0],
        head="mlp" if len(linears) > 1 else "linear",
        head_hidden=tuple(part.out_features for part in linears[:-1]) or (1,),
        outputs=linears[-1].out_features,
        norm_on=tuple(norm_on) if norm is not None else (),
        **fields,
    )
    if norm is not None and norm.eps != spec.eps:
        raise UserError(
            f"decoder_weights: one eps serves all norms, got {norm.eps} in the last and {spec.eps} in layers."
        )
    none = found.tensors[0][0].new_empty(0)
    weight, bias = (none, none) if norm is None else _affine(norm)
    return DecoderWeights(spec, weight, bias, found.tensors, tuple(t for part in linears for t in _affine(part)))


def _torch(layers: Sequence[Any]) -> _Layers:
    """Layers under the names of `nn.TransformerDecoderLayer`."""
    first = layers[0]
    kind = type(first).__name__
    for name in ("multihead_attn", "linear1", "linear2", "norm2", "norm3"):
        if not hasattr(first, name):
            raise UserError(f"decoder_weights: a layer {kind} has no {name}: it is no decoder layer that the op knows.")
    norm_first = bool(getattr(first, "norm_first", getattr(first, "normalize_before", False)))
    self_attention = kind not in WITHOUT_SELF_ATTENTION
    if self_attention and not isinstance(first, nn.TransformerDecoderLayer) and not norm_first:
        raise UserError(
            f"decoder_weights: a layer {kind} with norms after its sublayers drops what self-attention gave, in the "
            "published code; only normalize_before=True is the decoder that the op has."
        )
    attention = first.multihead_attn
    fields = {
        "heads": attention.num_heads,
        "eps": _one("eps of LayerNorm", (n.eps for l in layers for n in (l.norm2, l.norm3))),
        "activation": _activation(first.activation),
        "norm_first": norm_first,
        "self_attention": self_attention,
        "memory_width": attention.kdim,
        "dropout_on": ("attention", "projection", "hidden"),
    }
    tensors = []
    for layer in layers:
        own = _attention(layer.multihead_attn)
        row = [*own[:4], *_affine(layer.linear1), *_affine(layer.linear2), *_affine(layer.norm2), *_affine(layer.norm3)]
        row += own[4:]
        if self_attention:
            row += [*_attention(layer.self_attn), *_affine(layer.norm1)]
        tensors.append(tuple(row))
    return _Layers(fields, tuple(tensors))


def _attention(attention: nn.MultiheadAttention) -> list[Tensor]:
    """in_proj weight and bias, out_proj weight and bias, then the memory's projection where it has one of its own."""
    out = _affine(attention.out_proj)
    if attention.bias_k is not None or attention.add_zero_attn:
        raise UserError("decoder_weights: the op has no bias_k, bias_v or zero row in attention, as this module has.")
    weight: Tensor | None = attention.in_proj_weight
    more = []
    if weight is None:
        if attention.kdim != attention.vdim:
            raise UserError(
                f"decoder_weights: keys and values must come from rows of one width, got kdim={attention.kdim} and "
                f"vdim={attention.vdim}."
            )
        weight = attention.q_proj_weight
        more = [torch.cat((attention.k_proj_weight, attention.v_proj_weight))]
    bias = attention.in_proj_bias
    if bias is None:
        bias = weight.new_zeros(3 * attention.embed_dim)
    return [weight, bias, *out, *more]


def _bert(layers: Sequence[Any]) -> _Layers:
    """Layers of a BERT encoder: norms after sublayers, self-attention, attention to the memory, feed-forward."""
    first = layers[0]
    cross = first.crossattention.self
    width = cross.query.out_features
    fields = {
        "heads": cross.num_attention_heads,
        "eps": _one("eps of LayerNorm", (n.eps for l in layers for n in _bert_norms(l))),
        "activation": _activation(first.intermediate.intermediate_act_fn),
        "norm_first": False,
        "self_attention": True,
        "memory_width": cross.key.in_features if cross.key.in_features != width else None,
        "dropout_on": ("attention", "projection"),
    }
    tensors = []
    for layer in layers:
        own, cross = layer.attention.self, layer.crossattention.self
        cross_bias = torch.cat([part.bias for part in (cross.query, cross.key, cross.value)])
        if fields["memory_width"] is None:
            projections = [torch.cat([part.weight for part in (cross.query, cross.key, cross.value)])]
        else:
            projections = [cross.query.weight, torch.cat([cross.key.weight, cross.value.weight])]
        first_norm, second_norm, third_norm = _bert_norms(layer)
        parts = [
            layer.crossattention.output.dense,
            layer.intermediate.dense,
            layer.output.dense,
            second_norm,
            third_norm,
        ]
        row = [projections[0], cross_bias, *(t for part in parts for t in _affine(part)), *projections[1:]]
        row += [
            torch.cat([getattr(part, kind) for part in (own.query, own.key, own.value)]) for kind in ("weight", "bias")
        ]
        row += [*_affine(layer.attention.output.dense), *_affine(first_norm)]
        tensors.append(tuple(row))
    return _Layers(fields, tuple(tensors))


def _bert_norms(layer: Any) -> tuple[nn.LayerNorm, nn.LayerNorm, nn.LayerNorm]:
    return layer.attention.output.LayerNorm, layer.crossattention.output.LayerNorm, layer.output.LayerNorm


def _head(head: nn.Module) -> list[nn.Linear]:
    """The linear maps of a head, which has ReLU and dropout between them and nothing else."""
    parts = list(head) if isinstance(head, nn.Sequential) else [head]
    strange = [type(p).__name__ for p in parts if not isinstance(p, nn.Linear | nn.ReLU | nn.Dropout | nn.Identity)]
    linears = [part for part in parts if isinstance(part, nn.Linear)]
    relus = sum(isinstance(part, nn.ReLU) for part in parts)
    if strange or not linears or not isinstance(parts[-1], nn.Linear) or relus != len(linears) - 1:
        raise UserError(
            "decoder_weights: the head must be nn.Linear, or an nn.Sequential of up to four with ReLU (and dropout) "
            f"between, got {[type(p).__name__ for p in parts]}. Any other head goes on pair_simr's representations."
        )
    return linears


def _affine(module: nn.Linear | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias; zeros for a bias that is not there."""
    bias = module.bias
    return module.weight, module.weight.new_zeros(module.weight.shape[0]) if bias is None else bias


def _activation(function: Callable | nn.Module) -> str:
    if function in (F.relu, torch.relu) or isinstance(function, nn.ReLU):
        return "relu"
    exact = function is F.gelu or (isinstance(function, nn.GELU) and function.approximate == "none")
    # transformers' own class of the exact one
    if exact or type(function).__name__ == "GELUActivation":
        return "gelu"
    name = getattr(function, "__name__", type(function).__name__)
    raise UserError(f"decoder_weights: the op has ReLU and the exact GELU, and this decoder's activation is {name}.")


def _one(what: str, values: Iterable[Any]) -> Any:
    found = set(values)
    if len(found) != 1:
        raise UserError(f"decoder_weights: one {what} serves all layers, got {sorted(found)}.")
    return found.pop()
