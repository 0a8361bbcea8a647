"""What a training run is: one frozen record, resolved once, printed and saved with the run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from carzero.errors import UserError


def _doc(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with the sentence that `carzero train --help` shows."""
    return field(default=default, metadata={"help": text})


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"train: {name} must be at least {least}, got {value}.")


@dataclass(frozen=True)
class Init:
    """What a run starts from; without any, random weights of the preset `TrainConfig.model`.

    Raises:
        UserError: a whole model and one of its parts are named together.
    """

    weights: str | None = _doc("a whole model: a model folder, a hub id or a published .ckpt", None)
    image: str | None = _doc(
        "image encoder: a timm name (fetched from the hub), a folder or file of a timm state dict, or an M3AE or MRM "
        "checkpoint (vision_encoder.*)",
        None,
    )
    text: str | None = _doc("text encoder: a hub id or a folder of a BERT-type model; brings its tokenizer", None)

    def __post_init__(self) -> None:
        if self.weights is not None and (self.image is not None or self.text is not None):
            raise UserError(
                "train: init.weights names a whole model, so init.image and init.text must be left out, got "
                f"init.image={self.image!r} and init.text={self.text!r}."
            )


@dataclass(frozen=True)
class Validation:
    """Zero-shot AUROC on labelled images while the run goes on; none where no manifest is given.

    Raises:
        UserError: a manifest without prompts.
    """

    manifest: str | None = _doc(
        "table with the column image and a 0/1 column a class; empty cells are not scored", None
    )
    prompts: str | None = _doc("file of prompts as carzero classify takes it; its classes name the label columns", None)
    split: str | None = _doc("rows whose column split is this; all when not given", None)
    every: int = _doc("steps between validations; one is always made at the end", 500)
    batch_size: int = _doc("images scored at a time", 32)

    def __post_init__(self) -> None:
        if (self.manifest is None) != (self.prompts is None):
            raise UserError(
                "train: validation.manifest and validation.prompts belong together, got "
                f"{self.manifest!r} and {self.prompts!r}."
            )
        for name in ("every", "batch_size"):
            _at_least(f"validation.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Equivalent to the keys of a file given as ``carzero train --config FILE`` (YAML or JSON); each key is also an
    option of the command (``batch_size`` is ``--batch-size``), and options win over files.

    Raises:
        UserError: a value is out of range, or a name is not among those known.

    Source: CARZero (arXiv 2402.17417) section 4.1 and its published training configuration; what it sets is in
        ``carzero/train/recipes/published.yaml``.
    """

    manifest: str = _doc(
        "CSV or Parquet table with the columns image and text or texts; or shards: a folder of `carzero data shard`, "
        "or its address (s3://, gs://, azure://, r2://, hf://)"
    )
    out: str = _doc("folder for the model, checkpoints, metrics.csv, config.yaml and summary.html")
    split: str | None = _doc("rows whose column split is this; all when not given", None)
    init: Init = field(default=Init(), metadata={"help": "what the run starts from"})
    model: str = _doc(
        "preset (tiny, small, carzero) or .json file of the model where init.weights is not given", "tiny"
    )
    tokenizer: str | None = _doc(
        "tokenizer folder or hub id; that of init.text, or a word-level one made from the texts, if not given", None
    )
    epochs: int = _doc("passes over the manifest", 15)
    steps: int | None = _doc("optimizer steps; when given, epochs is not read", None)
    batch_size: int | dict[int, int] = field(
        default=64,
        metadata={
            "help": "image-text pairs in a step, of all processes; each is a negative of all others. {0: 64, 2: 128} "
            "is 64 in the first two epochs and 128 from then on"
        },
    )
    micro_batch: int | None = _doc(
        "images that a process encodes at a time; the loss stays that of the whole batch, and the encoders run twice",
        None,
    )
    optimizer: Literal["adamw", "adam"] = _doc(
        "adamw decouples the decay of matrices; adam adds it to gradients", "adamw"
    )
    learning_rate: float = _doc("peak learning rate", 5e-5)
    schedule: Literal["cosine", "constant"] = _doc("course of the learning rate after the warm-up", "cosine")
    warmup: float = _doc("share of all steps in which the rate climbs from 0", 0.05)
    weight_decay: float = _doc("decay of matrices; biases and norms are spared by adamw", 1e-6)
    betas: tuple[float, float] = _doc("decay of the optimizer's two averages", (0.5, 0.999))
    clip: float = _doc("largest norm of the whole gradient; 0 does not clip", 0.25)
    text: Literal["sentence", "some", "report", "published"] = _doc(
        "what stands for a report in a step: one random sentence, one or (every second time) two to four of them, or "
        "all; published: one of the sentences that the authors' code cuts and keeps",
        "sentence",
    )
    positives: Literal["diagonal", "identical", "report"] = _doc(
        "which texts of a batch are an image's own: its drawn one (published), every text that says the same, "
        "or every text whose sentences its report holds",
        "diagonal",
    )
    texts_per_image: int = _doc(
        "texts drawn from each image's report for a step; more cost little, the images are encoded once", 1
    )
    augment: Literal["none", "crop", "affine", "published"] = _doc(
        "random views of an image: none, a crop, or crop, rotation (10 degrees; published: 30), shift, scale, "
        "brightness and contrast",
        "none",
    )
    flip: Literal["none", "image", "sides"] = _doc(
        "mirror some images: none; image (published: the text goes on saying left for what is now right); or sides, "
        "which swaps left and right in the image's text too",
        "none",
    )
    flip_share: float = _doc("share of the images that flip mirrors", 0.3)
    cache: bool = _doc("keep the prepared images in memory, shared by the reading processes", False)
    cache_folder: str | None = _doc(
        "keep the prepared images, or shards that are fetched, in this folder, for later runs too", None
    )
    shuffle_shards: int = _doc("shards whose pairs are shuffled together, where the manifest is shards", 16)
    validation: Validation = field(default=Validation(), metadata={"help": "zero-shot AUROC during the run"})
    seed: int = _doc("of weights, data order, sentences and dropout", 0)
    device: str = _doc("cpu, cuda, cuda:N, or auto", "auto")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _doc(
        "of activations; auto: bfloat16 autocast on CUDA, float32 on CPU; float16 scales the loss", "auto"
    )
    sharding: Literal["none", "fsdp2"] = _doc(
        "fsdp2 spreads weights, gradients and optimizer over the processes; none keeps a copy in each", "none"
    )
    compile: bool = _doc("compile the encoders with torch.compile", False)
    backend: str = _doc("backend of the decoder: auto, reference, torch, cpp, triton or cuda", "auto")
    workers: int = _doc("processes that read images; 0 reads in the training process", 0)
    trackers: list[str] = field(
        default_factory=list,
        metadata={"help": "where accelerate sends the figures as well: tensorboard, wandb, mlflow, ..."},
    )
    log_every: int = _doc("steps between printed lines where the output is no terminal", 20)
    checkpoint_every: int = _doc("steps between checkpoints; one is always written at the end and on interruption", 500)
    keep: int = _doc("newest checkpoints that are kept", 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "trackers", list(self.trackers))
        for name in ("epochs", "texts_per_image", "shuffle_shards", "log_every", "checkpoint_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("steps", "micro_batch"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "clip", "workers", "seed"):
            _at_least(name, getattr(self, name), 0)
        self._check_batch_size()
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise UserError(f"train: learning_rate must be positive and finite, got {self.learning_rate}.")
        if self.text == "report" and self.texts_per_image > 1:
            raise UserError(
                "train: text='report' says all there is about an image in one text, so it needs texts_per_image 1, got "
                f"{self.texts_per_image}."
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"train: warmup is a share of all steps and must lie in [0, 1), got {self.warmup}.")
        if not 0 <= self.flip_share <= 1:
            raise UserError(f"train: flip_share must lie in [0, 1], got {self.flip_share}.")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"train: betas must be two numbers in [0, 1), got {self.betas}.")
        if self.cache and self.cache_folder is not None:
            raise UserError(
                f"train: cache keeps images in memory and cache_folder in {self.cache_folder}; give one of the two."
            )
        for name, hint in typing.get_type_hints(type(self)).items():
            if typing.get_origin(hint) is Literal:
                one_of(name, getattr(self, name), typing.get_args(hint))

    def _check_batch_size(self) -> None:
        sizes = self.batch_size if isinstance(self.batch_size, dict) else {0: self.batch_size}
        if 0 not in sizes or any(epoch < 0 for epoch in sizes):
            raise UserError(f"train: batch_size by epoch must begin at epoch 0, got {sizes}.")
        for size in sizes.values():
            _at_least("batch_size", size, 1)

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Pairs of a step, by the first epoch for which it holds, in order."""
        return dict(sorted(self.batch_size.items())) if isinstance(self.batch_size, dict) else {0: self.batch_size}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The config of these values; an unknown key is an error that names the nearest known one."""
        from carzero.train.options import parse_mapping

        return parse_mapping(values)

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for YAML or JSON."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def flat_fields(config: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted name, type, default (`dataclasses.MISSING` where there is none) and help of every setting."""
    hints = typing.get_type_hints(config)
    for entry in dataclasses.fields(config):
        hint, name = hints[entry.name], prefix + entry.name
        if dataclasses.is_dataclass(hint):
            yield from flat_fields(typing.cast(type, hint), f"{name}.")
        else:
            made = entry.default_factory
            yield name, hint, entry.default if made is dataclasses.MISSING else made(), entry.metadata["help"]


def choose_dtype(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of activations and why; weights and optimizer stay float32."""
    if precision != "auto":
        return getattr(torch, precision), "asked for"
    if device.type == "cuda":
        return torch.bfloat16, "a CUDA device multiplies bfloat16 several times faster"
    return torch.float32, "a CPU trains in float32 unless asked otherwise"


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless `value` is known; the sentence lists what is, and the nearest."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"train: unknown {name} {value!r}.{hint} Known: {', '.join(known)}.")
