"""The decoder's structure and its parameters, as plain data.

Letters (see docs/conventions.md): M memories, Q queries, P memory rows, D width, H heads, K head width (D = H*K),
F feed-forward width, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

#: Parameters of one layer, in the order in which the op takes them.
LAYER_PARAMETERS = (
    "in_proj_weight",  # [3D, D]  rows: query, key, value
    "in_proj_bias",  # [3D]
    "out_proj_weight",  # [D, D]
    "out_proj_bias",  # [D]
    "linear1_weight",  # [F, D]
    "linear1_bias",  # [F]
    "linear2_weight",  # [D, F]
    "linear2_bias",  # [D]
    "norm2_weight",  # [D]  before attention
    "norm2_bias",  # [D]
    "norm3_weight",  # [D]  before the feed-forward network
    "norm3_bias",  # [D]
)
#: What layers of other decoders have besides, after these twelve.
MEMORY_PARAMETERS = ("memory_proj_weight",)  # [2D, memory_width]  rows: key, value; in_proj_weight is then [D, D]
SELF_PARAMETERS = (
    "self_in_proj_weight",  # [3D, D]
    "self_in_proj_bias",  # [3D]
    "self_out_proj_weight",  # [D, D]
    "self_out_proj_bias",  # [D]
    "norm1_weight",  # [D]  of self-attention
    "norm1_bias",  # [D]
)

NORM_ON = ("memory", "queries", "output")
DROPOUT_ON = ("attention", "projection", "hidden", "head")
# fields whose defaults CARZero's decoder has and no tensor's shape tells
_STRUCTURE = (
    "activation", "norm_first", "norm_on", "self_attention", "readout", "memory_width", "outputs", "dropout_on",
)  # fmt: skip


@dataclass(frozen=True)
class DecoderSpec:
    """Structure of the decoder; the defaults are CARZero's published final model, which every backend runs.

    Fields from `activation` on make it another repository's decoder, which `reference` and `torch` run. docs/drop-in.md
    says which repository needs which.

    Args:
        width: D, width of queries, and of memory rows where `memory_width` is None.
        layers: L, number of decoder layers.
        heads: H, attention heads; must divide `width`.
        ffn: F, hidden width of the feed-forward network.
        eps: epsilon of every LayerNorm in the decoder.
        head: ``"mlp"`` (D - head_hidden - outputs, ReLU and dropout between) or ``"linear"`` (D - outputs).
        head_hidden: hidden widths of the MLP head; one to three.
        activation: of the feed-forward network; ``"gelu"`` is the exact one.
        norm_first: LayerNorm before each sublayer; False: after its residual sum.
        norm_on: where the one LayerNorm LN0 is applied, any of ``"memory"``, ``"queries"``, ``"output"``; with none of
            them the decoder has no LN0. Norms of one's own on memory or queries go before the call: they are no work
            per pair.
        self_attention: queries are ``[Q, T, D]``, and the T tokens of a query attend to each other before the memory.
        readout: which tokens go through the head: ``"first"`` or ``"all"``, which needs self-attention.
        memory_width: width of memory rows where it is not D.
        outputs: C, numbers the head gives; above 1 they are the last axis of the logits.
        dropout_on: where dropout acts: softmax weights of attention, what attention and the feed-forward network add,
            the latter's hidden rows, before and inside the head.

    Raises:
        ValueError: a field is out of range, or two do not go together.

    Source: CARZero (arXiv 2402.17417) section 3.3; published configuration ``pretrain_llm_dqn_wo_self_atten_mlp_gl``.
    """

    width: int = 768
    layers: int = 4
    heads: int = 4
    ffn: int = 1024
    eps: float = 1e-5
    head: Literal["mlp", "linear"] = "mlp"
    head_hidden: tuple[int, ...] = (1024, 512, 256)
    activation: Literal["relu", "gelu"] = "relu"
    norm_first: bool = True
    norm_on: tuple[str, ...] = NORM_ON
    self_attention: bool = False
    readout: Literal["first", "all"] = "first"
    memory_width: int | None = None
    outputs: int = 1
    dropout_on: tuple[str, ...] = DROPOUT_ON

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "ffn", "outputs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"DecoderSpec: {name} must be a positive int, got {value!r}.")
        if self.width % self.heads:
            raise ValueError(f"DecoderSpec: heads must divide width, got width={self.width} and heads={self.heads}.")
        for name, known in (
            ("head", ("mlp", "linear")),
            ("activation", ("relu", "gelu")),
            ("readout", ("first", "all")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"DecoderSpec: {name} must be {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}."
                )
        object.__setattr__(self, "head_hidden", tuple(self.head_hidden))
        if not 1 <= len(self.head_hidden) <= 3 or any(int(w) < 1 for w in self.head_hidden):
            raise ValueError(
                f"DecoderSpec: head_hidden must be one to three positive widths, got {self.head_hidden!r}."
            )
        for name, places in (("norm_on", NORM_ON), ("dropout_on", DROPOUT_ON)):
            given = getattr(self, name)
            if isinstance(given, str) or not set(given) <= set(places):
                raise ValueError(f"DecoderSpec: {name} must hold any of {', '.join(places)}, got {given!r}.")
            # one order, so that equal specs compare equal
            object.__setattr__(self, name, tuple(place for place in places if place in given))
        if self.readout == "all" and not self.self_attention:
            raise ValueError("DecoderSpec: readout='all' is of a query's tokens, which only self_attention=True has.")
        if self.memory_width is not None:
            if not isinstance(self.memory_width, int) or self.memory_width < 1:
                raise ValueError(
                    f"DecoderSpec: memory_width must be a positive int or None, got {self.memory_width!r}."
                )
            if self.memory_width == self.width:
                object.__setattr__(self, "memory_width", None)
            elif "memory" in self.norm_on:
                raise ValueError(
                    f"DecoderSpec: one LayerNorm cannot serve memory rows of width {self.memory_width} and queries of "
                    f"width {self.width}: leave 'memory' out of norm_on."
                )
        # made once, and not inside a compiled call: what other decoders are told apart by
        found = [f"{name}={getattr(self, name)!r}" for name in _STRUCTURE if getattr(self, name) != _default(name)]
        if self.head == "mlp" and len(self.head_hidden) != 3:
            found.insert(0, f"head_hidden={self.head_hidden!r}")
        object.__setattr__(self, "_differences", ", ".join(found))
        object.__setattr__(self, "_encoded", json.dumps(asdict(self)) if found else "")
        usual = self.outputs == 1 and (self.head == "linear" or len(self.head_hidden) == 3)
        body = self if usual else dataclasses.replace(self, head="linear", head_hidden=(1,), outputs=1)
        object.__setattr__(self, "_body", body)

    @property
    def head_width(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads

    @property
    def memory_dim(self) -> int:
        """Width of memory rows."""
        return self.width if self.memory_width is None else self.memory_width

    def differences(self) -> str:
        """The fields that make this another decoder than CARZero's, as ``activation='gelu', ...``; else empty."""
        return self._differences  # type: ignore[attr-defined]

    def other(self) -> DecoderSpec | None:
        """Itself where it is another decoder than CARZero's, else None."""
        return self if self._encoded else None  # type: ignore[attr-defined]

    def body(self) -> DecoderSpec:
        """The spec with a head that every backend has: representations and maps do not depend on the head."""
        return self._body  # type: ignore[attr-defined]

    def encode(self) -> str:
        """What the registered ops are given: JSON of another decoder's spec, or ``""`` for CARZero's."""
        return self._encoded  # type: ignore[attr-defined]

    def head_widths(self) -> tuple[int, ...]:
        """Widths along the head, from D to C: ``(768, 1024, 512, 256, 1)`` or ``(768, 1)``."""
        hidden = self.head_hidden if self.head == "mlp" else ()
        return (self.width, *hidden, self.outputs)

    def layer_parameters(self) -> tuple[str, ...]:
        """Names of one layer's parameters, in the order in which the op takes them."""
        memory = () if self.memory_width is None else MEMORY_PARAMETERS
        return (*LAYER_PARAMETERS, *memory, *(SELF_PARAMETERS if self.self_attention else ()))

    def layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of one layer's parameters, in the order of `layer_parameters`."""
        d, f = self.width, self.ffn
        rows = 3 * d if self.memory_width is None else d
        shapes = [(rows, d), (3 * d,), (d, d), (d,), (f, d), (f,), (d, f), (d,), (d,), (d,), (d,), (d,)]
        if self.memory_width is not None:
            shapes.append((2 * d, self.memory_width))
        if self.self_attention:
            shapes += [(3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,)]
        return tuple(shapes)

    def head_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the head's parameters: weight, bias of each linear map in turn."""
        widths = self.head_widths()
        return tuple(s for i, o in pairwise(widths) for s in ((o, i), (o,)))

    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all parameters in the op's order: norm weight, norm bias, layer by layer, head."""
        norm = (self.width if self.norm_on else 0,)
        return (norm, norm, *(self.layer_shapes() * self.layers), *self.head_shapes())


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder's tensors and its spec; no module.

    Args:
        spec: the structure.
        norm_weight, norm_bias: ``[D]``, the one LayerNorm applied to memory, queries and output (LN0); ``[0]`` where
            the spec applies it nowhere.
        layers: L tuples of the tensors named by `DecoderSpec.layer_parameters`, in `torch.nn.Linear` layout.
        head: weight and bias of each linear map of the head.

    All tensors share one floating dtype and one device. They may be wider than the memory (float32 masters with
    bfloat16 activations): the op casts while it packs, and returns gradients in the weights' dtype.
    """

    spec: DecoderSpec
    norm_weight: Tensor
    norm_bias: Tensor
    layers: tuple[tuple[Tensor, ...], ...]
    head: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        got = [tuple(t.shape) for t in self.flat()]
        want = list(self.spec.parameter_shapes())
        if len(got) != len(want):
            raise ValueError(f"DecoderWeights: expected {len(want)} tensors for {self.spec}, got {len(got)}.")
        for index, (g, w) in enumerate(zip(got, want)):
            if g != w:
                raise ValueError(
                    f"DecoderWeights: {parameter_names(self.spec)[index]} must have shape {w}, got {g} for {self.spec}."
                )

    def flat(self) -> list[Tensor]:
        """All tensors in the op's order (see `DecoderSpec.parameter_shapes`)."""
        return [self.norm_weight, self.norm_bias, *(t for layer in self.layers for t in layer), *self.head]

    @classmethod
    def from_flat(cls, spec: DecoderSpec, tensors: Sequence[Tensor]) -> DecoderWeights:
        """Inverse of `flat`."""
        n = len(spec.layer_parameters())
        body = 2 + n * spec.layers
        layers = tuple(tuple(tensors[2 + n * l : 2 + n * (l + 1)]) for l in range(spec.layers))
        return cls(spec, tensors[0], tensors[1], layers, tuple(tensors[body:]))

    def map(self, function) -> DecoderWeights:
        """A copy with `function` applied to every tensor."""
        return self.from_flat(self.spec, [function(t) for t in self.flat()])

    def to(self, *args, **kwargs) -> DecoderWeights:
        """A copy with every tensor moved or cast as by `torch.Tensor.to`."""
        return self.map(lambda t: t.to(*args, **kwargs))

    @classmethod
    def random(
        cls,
        spec: DecoderSpec,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        std: float = 0.02,
    ) -> DecoderWeights:
        """Weights drawn as the published model initialises them: N(0, std) matrices, unit norms, zero biases.

        Biases and norms are perturbed by N(0, std) as well, so that a test sees every parameter.
        """
        generator = torch.Generator().manual_seed(seed)
        names = parameter_names(spec)
        tensors = []
        for name, shape in zip(names, spec.parameter_shapes()):
            value = torch.randn(shape, generator=generator, dtype=torch.float64) * std
            if "norm" in name and name.endswith("weight"):
                value = value + 1.0
            tensors.append(value.to(device=device, dtype=dtype))
        return cls.from_flat(spec, tensors)


def parameter_names(spec: DecoderSpec) -> list[str]:
    """Names in the op's order: ``norm.weight``, ``norm.bias``, ``layers.0.in_proj_weight``, ..., ``head.0.weight``."""
    names = ["norm.weight", "norm.bias"]
    names += [f"layers.{l}.{p}" for l in range(spec.layers) for p in spec.layer_parameters()]
    names += [f"head.{i}.{p}" for i in range(len(spec.head_widths()) - 1) for p in ("weight", "bias")]
    return names


def spec_from_shapes(
    shapes: Mapping[str, Sequence[int]] | Sequence[Sequence[int]], heads: int, eps: float
) -> DecoderSpec:
    """The spec that parameters of these shapes, in the op's order, belong to; heads and eps leave no trace there."""
    sizes = [tuple(s) for s in (shapes.values() if isinstance(shapes, Mapping) else shapes)]
    width = sizes[0][0]
    n = len(LAYER_PARAMETERS)
    # the head is two tensors (linear) or eight (MLP): only one of them leaves whole layers
    head_count = next(c for c in (2, 8) if (len(sizes) - 2 - c) % n == 0 and sizes[-c][1] == width)
    layers = (len(sizes) - 2 - head_count) // n
    fields: dict = {"width": width, "layers": layers, "heads": heads, "ffn": sizes[2 + 4][0], "eps": eps}
    if head_count == 2:
        return DecoderSpec(**fields, head="linear")
    return DecoderSpec(**fields, head="mlp", head_hidden=tuple(s[0] for s in sizes[-8:-2:2]))  # type: ignore[arg-type]


def asdict(spec: DecoderSpec) -> dict:
    """The spec's own fields as a JSON-ready dict."""
    return {f.name: getattr(spec, f.name) for f in dataclasses.fields(DecoderSpec)}


def _default(name: str) -> object:
    return next(f.default for f in dataclasses.fields(DecoderSpec) if f.name == name)


@functools.cache
def decode(encoded: str) -> DecoderSpec | None:
    """Inverse of `DecoderSpec.encode`; None for CARZero's, whose sizes the tensors tell."""
    return DecoderSpec(**json.loads(encoded)) if encoded else None
