"""What a training run is: one frozen record, resolved once, printed and saved with the run."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from carzero.errors import UserError


def _doc(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with the sentence that `carzero train --help` shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; the optimizer's defaults are the published recipe's.

    Equivalent to the keys of the file given as ``carzero train --config FILE`` (JSON or YAML); each key is also an
    option of the command (``batch_size`` is ``--batch-size``), and options win over the file.

    Raises:
        UserError: a value is out of range, or a name is not among those known.

    Source: CARZero (arXiv 2402.17417) section 4.1 and its published training configuration.
    """

    manifest: str = _doc("CSV or Parquet table with the columns image and text")
    out: str = _doc("folder for the model, checkpoints, metrics.csv and config.json")
    init: str | None = _doc("weights to start from: a model folder, a hub id or a published .ckpt", None)
    model: str = _doc("preset of the model that is trained from nothing when init is not given", "tiny")
    tokenizer: str | None = _doc(
        "tokenizer folder or hub id; a word-level one is made from the texts if not given", None
    )
    epochs: int = _doc("passes over the manifest", 15)
    steps: int | None = _doc("optimizer steps; when given, epochs is not read", None)
    batch_size: int = _doc("image-text pairs in a step, of all processes; each is a negative of all others", 64)
    micro_batch: int | None = _doc(
        "images that a process encodes at a time; the loss stays that of the whole batch, and the encoders run twice",
        None,
    )
    learning_rate: float = _doc("peak learning rate of AdamW", 5e-5)
    schedule: Literal["cosine", "constant"] = _doc("course of the learning rate after the warm-up", "cosine")
    warmup: float = _doc("share of all steps in which the rate climbs from 0", 0.05)
    weight_decay: float = _doc("decoupled decay of matrices; biases and norms are spared", 1e-6)
    betas: tuple[float, float] = _doc("decay of AdamW's two averages", (0.5, 0.999))
    clip: float = _doc("largest norm of the whole gradient; 0 does not clip", 0.25)
    text: Literal["sentence", "some", "report"] = _doc(
        "what stands for a report in a step: one random sentence (published), one or (every second time) two to four "
        "of them, or all",
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
    augment: Literal["none", "crop", "affine"] = _doc(
        "random views of an image: none, a crop, or crop, rotation, scale, brightness and contrast; never a flip",
        "none",
    )
    cache: bool = _doc("keep the prepared images in memory after the first pass", False)
    seed: int = _doc("of weights, data order, sentences and dropout", 0)
    device: str = _doc("cpu, cuda, cuda:N, or auto", "auto")
    precision: Literal["auto", "float32", "bfloat16"] = _doc("auto: bfloat16 autocast on CUDA, float32 on CPU", "auto")
    backend: str = _doc("backend of the decoder: auto, reference, torch, cpp, triton or cuda", "auto")
    workers: int = _doc("processes that read images; 0 reads in the training process", 0)
    log_every: int = _doc("steps between printed lines where the output is no terminal", 20)
    checkpoint_every: int = _doc("steps between checkpoints; one is always written at the end and on interruption", 500)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("epochs", "batch_size", "texts_per_image", "log_every", "checkpoint_every"):
            _at_least(name, getattr(self, name), 1)
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
        if self.micro_batch is not None:
            _at_least("micro_batch", self.micro_batch, 1)
        for name in ("weight_decay", "clip", "workers", "seed"):
            _at_least(name, getattr(self, name), 0)
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise UserError(f"train: learning_rate must be positive and finite, got {self.learning_rate}.")
        if self.cache and self.workers:
            raise UserError(
                f"train: cache keeps images in the training process, so it needs workers 0, got {self.workers}."
            )
        if self.text == "report" and self.texts_per_image > 1:
            raise UserError(
                "train: text='report' says all there is about an image in one text, so it needs texts_per_image 1, got "
                f"{self.texts_per_image}."
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"train: warmup is a share of all steps and must lie in [0, 1), got {self.warmup}.")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"train: betas must be two numbers in [0, 1), got {self.betas}.")
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            if typing.get_origin(hint) is Literal:
                one_of(name, getattr(self, name), typing.get_args(hint))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The config of these values; an unknown key is an error that names the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            one_of("key", key, known)
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise UserError(f"train: {' and '.join(missing)} must be given, as --{missing[0]} or in the config file.")
        hints = typing.get_type_hints(cls)
        return cls(**{k: coerce(k, v, hints[k]) for k, v in values.items()})

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def resolve_device(self) -> tuple[torch.device, str]:
        """The device and why."""
        if self.device != "auto":
            return torch.device(self.device), "asked for"
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is present"
        return torch.device("cpu"), "no CUDA device is present"

    def resolve_precision(self, device: torch.device) -> tuple[torch.dtype, str]:
        """The dtype of activations and why; weights and optimizer stay float32."""
        if self.precision != "auto":
            return getattr(torch, self.precision), "asked for"
        if device.type == "cuda":
            return torch.bfloat16, "a CUDA device multiplies bfloat16 several times faster"
        return torch.float32, "a CPU trains in float32 unless asked otherwise"


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys of a JSON or YAML file."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"train: cannot read the config file {path}: {error.strerror}.") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"train: {path} is not valid JSON or YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"train: {path} must hold keys and values, got {type(values).__name__}.")
    return values


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless `value` is known; the sentence lists what is, and the nearest."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"train: unknown {name} {value!r}.{hint} Known: {', '.join(known)}.")


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` (a string from the command line, or what a file holds) as the field's type."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None or value == "none":
            return None
        hint = next(o for o in options if o is not type(None))
    try:
        if hint is bool:
            if str(value).lower() not in ("true", "false"):
                raise ValueError
            return str(value).lower() == "true"
        if typing.get_origin(hint) is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(float(p) for p in parts)
        if hint is int:
            number = float(value)
            if isinstance(value, bool) or number != int(number):
                raise ValueError
            return int(number)
        if hint is float:
            return float(value)
    except (TypeError, ValueError):
        kind = getattr(hint, "__name__", str(hint))
        raise UserError(f"train: {name} must be {kind}, got {value!r}.") from None
    return value if value is None else str(value)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"train: {name} must be at least {least}, got {value}.")
