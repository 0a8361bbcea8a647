"""The decoder's structure and its parameters, as plain data.

Letters (see docs/conventions.md): M memories, Q queries, P memory rows, D width, H heads, K head width (D = H*K),
F feed-forward width, L layers.
"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class DecoderSpec:
    """Structure of the similarity-representation decoder; the defaults are CARZero's published final model.

    Args:
        width: D, width of memory rows and queries.
        layers: L, number of decoder layers.
        heads: H, attention heads; must divide `width`.
        ffn: F, hidden width of the feed-forward network.
        eps: epsilon of every LayerNorm in the decoder.
        head: ``"mlp"`` (D - head_hidden - 1, ReLU and dropout between) or ``"linear"`` (D - 1).
        head_hidden: hidden widths of the MLP head; three of them.

    Raises:
        ValueError: a field is out of range.

    Source: CARZero (arXiv 2402.17417) section 3.3; published configuration ``pretrain_llm_dqn_wo_self_atten_mlp_gl``.
    """

    width: int = 768
    layers: int = 4
    heads: int = 4
    ffn: int = 1024
    eps: float = 1e-5
    head: Literal["mlp", "linear"] = "mlp"
    head_hidden: tuple[int, int, int] = (1024, 512, 256)

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "ffn"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"DecoderSpec: {name} must be a positive int, got {value!r}.")
        if self.width % self.heads:
            raise ValueError(f"DecoderSpec: heads must divide width, got width={self.width} and heads={self.heads}.")
        if self.head not in ("mlp", "linear"):
            raise ValueError(f"DecoderSpec: head must be 'mlp' or 'linear', got {self.head!r}.")
        object.__setattr__(self, "head_hidden", tuple(self.head_hidden))
        if len(self.head_hidden) != 3 or any(int(w) < 1 for w in self.head_hidden):
            raise ValueError(f"DecoderSpec: head_hidden must be three positive widths, got {self.head_hidden!r}.")

    @property
    def head_width(self) -> int:
        """K, the width of one attention head."""
        return self.width // self.heads

    def head_widths(self) -> tuple[int, ...]:
        """Widths along the head, from D to 1: ``(768, 1024, 512, 256, 1)`` or ``(768, 1)``."""
        return (self.width, *self.head_hidden, 1) if self.head == "mlp" else (self.width, 1)

    def layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of one layer's parameters, in the order of `LAYER_PARAMETERS`."""
        d, f = self.width, self.ffn
        return ((3 * d, d), (3 * d,), (d, d), (d,), (f, d), (f,), (d, f), (d,), (d,), (d,), (d,), (d,))

    def head_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the head's parameters: weight, bias of each linear map in turn."""
        widths = self.head_widths()
        return tuple(s for i, o in pairwise(widths) for s in ((o, i), (o,)))

    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all parameters in the op's order: norm weight, norm bias, layer by layer, head."""
        d = self.width
        return ((d,), (d,), *(self.layer_shapes() * self.layers), *self.head_shapes())


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder's tensors and its spec; no module.

    Args:
        spec: the structure.
        norm_weight, norm_bias: ``[D]``, the one LayerNorm applied to memory, queries and output (LN0).
        layers: L tuples of the twelve tensors named by `LAYER_PARAMETERS`, in `torch.nn.Linear` layout.
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
        n = len(LAYER_PARAMETERS)
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
    names += [f"layers.{l}.{p}" for l in range(spec.layers) for p in LAYER_PARAMETERS]
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
    """The spec as a JSON-ready dict."""
    return dataclasses.asdict(spec)
