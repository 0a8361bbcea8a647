"""What a model is made of, as frozen data: towers, decoder, text cleaning; JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from carzero.errors import UserError
from carzero.ops.spec import DecoderSpec

from .strict import build, known_keys, mapping, one_of, positive

MemoryRows = Literal["global+local", "local", "global"]
TextMode = Literal["default", "published"]
SimilarityName = Literal["decoder", "gloria", "max_sim", "vl_cabs", "cosine"]

#: What ``config.json`` is marked with, so that transformers knows it (`carzero.models.auto`).
MODEL_TYPE = "carzero"

#: Where the authors publish the text encoder that the released checkpoint was trained from, and its tokenizer.
PUBLISHED_TEXT_ENCODER = "Laihaoran/BioClinicalMPBERT"


@dataclass(frozen=True)
class ImageEncoderConfig:
    """A timm Vision Transformer with a CLS token, always built without downloading weights.

    Args:
        name: a timm model name; the other fields override what it says where they are not None.
        image_size: side of the square input in pixels (224, 384, 512, ... a multiple of the patch).
        width: D, width of a token.
        depth: number of transformer blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
        mlp_ratio: hidden width of a block's feed-forward network over `width`.
        in_chans: image channels.
        position: ``"sincos"``: fixed 2-D sine-cosine embedding, not trained (published); ``"learned"``: trained.
        stem: how pixels become patch tokens. ``"patch"``: one linear map (published); ``"conv"``: 3x3 convolutions
            with batch norm and max pooling, with which a small model learns from few images in a fraction of the steps.
        init_std: standard deviation of a new model's matrices in the blocks (timm: 0.02, at a width of 768).
    """

    name: str = "vit_base_patch16_224"
    image_size: int = 224
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None
    mlp_ratio: float | None = None
    in_chans: int = 3
    position: Literal["sincos", "learned"] = "sincos"
    stem: Literal["patch", "conv"] = "patch"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if not self.init_std > 0.0:
            raise UserError(f"ImageEncoderConfig: init_std must be positive, got {self.init_std}.")
        positive(self, "image_size", "width", "depth", "heads", "patch", "in_chans")
        one_of(self, "position", ("sincos", "learned"))
        one_of(self, "stem", ("patch", "conv"))
        if self.stem == "conv" and (not self.patch or self.patch < 2 or self.patch & (self.patch - 1)):
            raise UserError(
                f"ImageEncoderConfig: stem='conv' halves the image until a patch is a pixel, so patch must be given as "
                f"a power of two, got {self.patch}."
            )
        if self.patch and self.image_size % self.patch:
            raise UserError(
                f"ImageEncoderConfig: image_size must be a multiple of patch, got image_size={self.image_size} "
                f"and patch={self.patch}."
            )


@dataclass(frozen=True)
class TextEncoderConfig:
    """A Hugging Face BERT-type encoder; the fields are those of a BERT configuration.

    Args:
        model_type: Hugging Face architecture (``"bert"``, ``"roberta"``, ``"electra"``, ...).
        vocab_size: rows of the word-piece table.
        width: D, width of a token.
        depth: number of layers.
        heads: attention heads.
        ffn: feed-forward width.
        max_positions: rows of the position table.
        type_vocab_size: rows of the segment table.
        eps: epsilon of its LayerNorms.
        dropout: dropout of hidden states and attention weights, while training.
        extra: further fields of the Hugging Face configuration, as they are written there.
        pretrained: hub id or folder whose weights a *new* model starts from; saved models do not keep it.
        max_tokens: every text is padded (in meaning, not in computation) or cut to this many word pieces.
        last_layers: how many of the last hidden layers are summed.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    max_positions: int = 512
    type_vocab_size: int = 2
    eps: float = 1e-12
    dropout: float = 0.1
    extra: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    max_tokens: int = 97
    last_layers: int = 4

    def __post_init__(self) -> None:
        positive(self, "vocab_size", "width", "depth", "heads", "ffn", "max_positions", "type_vocab_size")
        positive(self, "max_tokens", "last_layers")
        if self.max_tokens < 2 or self.max_tokens > self.max_positions:
            raise UserError(
                "TextEncoderConfig: max_tokens must lie between 2 and max_positions, got "
                f"max_tokens={self.max_tokens} and max_positions={self.max_positions}."
            )
        if self.last_layers > self.depth + 1:
            raise UserError(
                "TextEncoderConfig: last_layers must be at most depth + 1 hidden states, got "
                f"last_layers={self.last_layers} and depth={self.depth}."
            )

    @classmethod
    def from_hugging_face(cls, source: str | Path, **fields: Any) -> TextEncoderConfig:
        """The configuration that a hub id or folder describes, with `pretrained` set to it.

        Args:
            source: hub id or folder with a Hugging Face ``config.json``.
            fields: fields to set otherwise, such as ``max_tokens=97``.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(str(source))
        except OSError as error:
            raise UserError(
                f"TextEncoderConfig: no text encoder at {str(source)!r}: it is not a folder with a config.json, and "
                f"the hub cannot be reached or does not know it ({str(error).splitlines()[0]})."
            ) from error
        given = dict(config.to_diff_dict())
        known = {
            "model_type": str(config.model_type),
            "vocab_size": config.vocab_size,
            "width": config.hidden_size,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "ffn": config.intermediate_size,
            "max_positions": config.max_position_embeddings,
            "type_vocab_size": config.type_vocab_size,
            "eps": config.layer_norm_eps,
            "dropout": config.hidden_dropout_prob,
        }
        taken = _HUGGING_FACE_IGNORED | set(_HUGGING_FACE.values())
        extra = {name: value for name, value in given.items() if name not in taken}
        return cls(**{**known, "extra": extra, "pretrained": str(source), **fields})

    def hugging_face(self) -> dict[str, Any]:
        """The fields as Hugging Face names them."""
        return {
            **self.extra,
            **{theirs: getattr(self, ours) for ours, theirs in _HUGGING_FACE.items()},
            "attention_probs_dropout_prob": self.dropout,
        }


_HUGGING_FACE = {
    "model_type": "model_type",
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
_HUGGING_FACE_IGNORED = {"attention_probs_dropout_prob", "architectures", "dtype", "transformers_version"}


@dataclass(frozen=True)
class DecoderConfig(DecoderSpec):
    """The decoder's structure with its training dropout and the rows its memories have.

    Args:
        dropout: rate at every published site (attention weights, after o, feed-forward hidden, after the
            feed-forward network, before the head and inside it), while training.
        memory_rows: ``"global+local"`` (published), ``"local"`` or ``"global"`` (one row).
        init_std: standard deviation of new matrices (published: 0.02, at a width of 768).
    """

    dropout: float = 0.1
    memory_rows: MemoryRows = "global+local"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "memory_rows", get_args(MemoryRows))
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"DecoderConfig: dropout must lie in [0, 1), got {self.dropout}.")
        if not self.init_std > 0.0:
            raise UserError(f"DecoderConfig: init_std must be positive, got {self.init_std}.")

    @property
    def spec(self) -> DecoderSpec:
        """The structure alone, as `carzero.ops` takes it."""
        return DecoderSpec(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DecoderSpec)})


@dataclass(frozen=True)
class CARZeroConfig:
    """A whole model; the defaults are the published one (`CARZeroConfig.carzero`).

    Args:
        image, text, decoder: the three parts; their widths must agree, for no projection lies between them.
        text_mode: ``"default"`` cleans texts with one-word prompts and decimals kept; ``"published"`` as the authors'
            code does (see docs/fidelity.md).
        similarity: what scores an image and a text: CARZero's decoder, or one of `carzero.similarities` behind two
            projections (docs/similarities.md); of `decoder`, the others use width and eps alone.
    """

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    text_mode: TextMode = "default"
    similarity: SimilarityName = "decoder"

    def __post_init__(self) -> None:
        one_of(self, "text_mode", get_args(TextMode))
        one_of(self, "similarity", get_args(SimilarityName))
        if self.similarity != "decoder" and self.decoder.memory_rows != "global+local":
            raise UserError(
                f"CARZeroConfig: similarity={self.similarity!r} finds the global row first and local rows after it, so "
                f"decoder.memory_rows must be 'global+local', got {self.decoder.memory_rows!r}."
            )
        decoder = self.decoder
        if decoder.self_attention or decoder.outputs > 1 or decoder.memory_width is not None:
            raise UserError(
                "CARZeroConfig: images and texts give one vector of the decoder's width as query, and one number is "
                "their score, so decoder.self_attention, outputs and memory_width must be left alone; a SimRDecoder of "
                "its own takes them."
            )
        widths = {"image": self.image.width, "text": self.text.width, "decoder": self.decoder.width}
        if len({width for width in widths.values() if width is not None}) > 1:
            given = ", ".join(f"{name}.width={width}" for name, width in widths.items() if width is not None)
            raise UserError(f"CARZeroConfig: image, text and decoder must have the same width, got {given}.")

    @classmethod
    def carzero(cls, *, image_size: int = 224, vocab_size: int = 30522) -> CARZeroConfig:
        """The published model: ViT-B/16, BERT-base, four decoder layers, global and local rows, MLP head."""
        return cls(ImageEncoderConfig(image_size=image_size), TextEncoderConfig(vocab_size=vocab_size))

    @classmethod
    def tiny(
        cls,
        *,
        vocab_size: int = 1000,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        layers: int = 2,
        image_size: int = 64,
        patch: int = 16,
        max_tokens: int = 32,
        dropout: float = 0.1,
        memory_rows: MemoryRows = "global+local",
        head: Literal["mlp", "linear"] = "mlp",
        text_mode: TextMode = "default",
    ) -> CARZeroConfig:
        """A model of the same make that trains on a CPU in minutes.

        Args:
            vocab_size: word pieces of the tokenizer that goes with it.
            width: D, of all three parts.
            depth: blocks of either encoder.
            heads: attention heads of the encoders and the decoder.
            layers: L, decoder layers.
            image_size: side of the square input in pixels.
            patch: side of a patch in pixels.
            max_tokens: word pieces a text is padded or cut to.
            dropout: rate in the text encoder and the decoder.
            memory_rows, head, text_mode: as in `DecoderConfig` and `CARZeroConfig`.
        """
        # a matrix then keeps the size of what passes it; at the published 0.02 a narrow model starts deaf to its inputs
        init_std = width**-0.5
        return cls(
            ImageEncoderConfig(
                image_size=image_size,
                width=width,
                depth=depth,
                heads=heads,
                patch=patch,
                mlp_ratio=2.0,
                init_std=init_std,
            ),
            TextEncoderConfig(
                vocab_size=vocab_size,
                width=width,
                depth=depth,
                heads=heads,
                ffn=2 * width,
                max_positions=max_tokens,
                dropout=dropout,
                extra={"initializer_range": init_std},
                max_tokens=max_tokens,
                last_layers=min(4, depth + 1),
            ),
            DecoderConfig(
                width=width,
                layers=layers,
                heads=heads,
                ffn=2 * width,
                head=head,
                head_hidden=(2 * width, width, width // 2),
                dropout=dropout,
                memory_rows=memory_rows,
                init_std=init_std,
            ),
            text_mode,
        )

    @classmethod
    def small(
        cls, *, vocab_size: int = 1000, image_size: int = 128, max_tokens: int = 48, layers: int = 2
    ) -> CARZeroConfig:
        """A model that learns from a few thousand images in minutes on a CPU: a convolutional stem before one block.

        Args:
            vocab_size, image_size, max_tokens, layers: as in `tiny`.
        """
        made = cls.tiny(
            vocab_size=vocab_size,
            width=128,
            layers=layers,
            image_size=image_size,
            max_tokens=max_tokens,
            dropout=0.0,
        )
        return dataclasses.replace(made, image=dataclasses.replace(made.image, depth=1, stem="conv"))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The configuration as indented JSON, marked as ours; `from_json` reads it back to an equal value."""
        return json.dumps({"model_type": MODEL_TYPE, **self.to_dict()}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CARZeroConfig:
        """Inverse of `to_dict`.

        Raises:
            UserError: a key is unknown (the sentence names the nearest known one) or a value does not fit.
        """
        values = dict(values)
        parts = {"image": ImageEncoderConfig, "text": TextEncoderConfig, "decoder": DecoderConfig}
        known_keys(cls, values, "")
        for name, part in parts.items():
            if name in values:
                values[name] = build(part, values[name], f"{name}.")
        return build(cls, values, "")

    @classmethod
    def from_json(cls, text: str) -> CARZeroConfig:
        """Inverse of `to_json`; raises `UserError` on text that is not a JSON object of known keys."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"CARZeroConfig: the configuration is not valid JSON: {error}.") from error
        values = dict(mapping(values, ""))
        # absent in folders of older versions
        marked = values.pop("model_type", MODEL_TYPE)
        if marked != MODEL_TYPE:
            raise UserError(
                f"CARZeroConfig: model_type must be {MODEL_TYPE!r}, got {marked!r}: a model of another kind."
            )
        return cls.from_dict(values)
