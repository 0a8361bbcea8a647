"""Zero-shot scores of radiographs: images are streamed against prompts that are encoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import pandas as pd
import torch

from carzero import similarities
from carzero.data.decode import ImageError
from carzero.data.files import ImageFile, list_images
from carzero.data.images import ImageProcessor
from carzero.errors import UserError
from carzero.models.carzero import CARZero, TextBank
from carzero.models.checkpoint import load
from carzero.models.config import TextMode
from carzero.models.text import clean_text
from carzero.ops import backends
from carzero.prompts.sets import PromptSet
from carzero.zeroshot.graphs import GraphedBatches, choose_graph
from carzero.zeroshot.guard import Verdict
from carzero.zeroshot.reading import choose_workers, read_batches

if TYPE_CHECKING:
    from carzero.data.decode import ImageSource

Pool = Literal["mean", "max"]
Images: TypeAlias = "str | os.PathLike[str] | Sequence[ImageSource | ImageFile]"


def choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that a model computes in fastest on a device, and why."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 several times faster than float32"
        return torch.float32, "this GPU has no bfloat16"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU multiplies bfloat16 on AMX tiles several times faster than float32"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "this CPU has AVX-512 products of bfloat16, twice as fast as those of float32"
    if device.type == "cpu":
        return torch.float32, "a CPU without AMX or AVX-512 bfloat16 multiplies bfloat16 slower than float32"
    return torch.float32, f"bfloat16 was not measured on {device.type}"


@dataclass(frozen=True)
class Choices:
    """What was chosen to run a classifier, each with its reason.

    Args:
        device, dtype, backend, workers: pairs (value, reason).
        graph: whether batches are replayed from a CUDA graph, and why.
    """

    device: tuple[torch.device, str]
    dtype: tuple[torch.dtype, str]
    backend: tuple[str, str]
    workers: tuple[int, str]
    graph: tuple[bool, str]


class ZeroShotClassifier:
    """Scores images against prompts: ``ZeroShotClassifier(model, prompts).predict(images)``.

    *Equivalent to*, for class c with prompts c_1 .. c_n::

        similarity = model.similarity(pixels, all_prompts)                 # [B, T]
        scores[:, c] = similarity[:, [c_1 .. c_n]].mean(1)                 # or .max(1)

    Prompts are encoded, and their keys and values projected, once; images are read in worker processes while the model
    works. Scores are logits: for one class they rank images, but they are no probabilities and classes do not compare.

    Args:
        model: a `CARZero`, put into evaluation mode and onto `device`; or what `carzero.load` opens.
        prompts: ``{class: prompt or [prompts]}``, a list of prompts that name their own classes, or a `PromptSet`.
        pool: how several prompts of a class become one score: ``"mean"`` or ``"max"`` of their logits.
        batch_size: images scored at a time.
        workers: processes that read images; None: by the number of images and cores.
        device: where to compute; None: CUDA where there is one, for a model that is on the CPU.
        dtype: of activations, weights stay as they are; None: bfloat16 where it pays, see `choose_dtype`.
        backend: of the all-pairs op, as in `carzero.ops.pair_logits`.

    Attributes:
        failures: DataFrame with the columns ``image`` and ``reason``: what the last `predict` could not score.
        verdicts: DataFrame with a row for each image that the last `predict` scored: ``image``, ``frontal`` (it looks
            like an upright frontal chest radiograph), ``score`` (log-odds above the guard's threshold) and ``looks``
            (what it looks like instead), see `carzero.zeroshot.guard`.
        warnings: sentences on images that the last `predict` scored but that look odd.
        choices: device, dtype, backend, workers and graph of the last `predict`, each with its reason.
    """

    def __init__(
        self,
        model: CARZero | str | os.PathLike[str],
        prompts: PromptSet | Mapping[str, str | Sequence[str]] | Sequence[str],
        *,
        pool: Pool = "mean",
        batch_size: int = 16,
        workers: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> None:
        if pool not in get_args(Pool):
            raise UserError(f"ZeroShotClassifier: pool must be mean or max, got {pool!r}.")
        if batch_size < 1:
            raise UserError(f"ZeroShotClassifier: batch_size must be at least 1, got {batch_size}.")
        if workers is not None and workers < 0:
            raise UserError(f"ZeroShotClassifier: workers must not be negative, got {workers}.")
        self.prompts = PromptSet.of(prompts)
        self.pool: Pool = pool
        self.batch_size = batch_size
        self.workers = workers
        self.backend = backend
        self.model = model if isinstance(model, CARZero) else load(os.fspath(model))
        _check_words(self.prompts, self.model.config.text_mode)
        self._device = _choose_device(device, self.model)
        self._dtype = (dtype, "asked for") if dtype is not None else choose_dtype(self._device[0])
        if self._dtype[0] not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"ZeroShotClassifier: dtype must be float32, bfloat16 or float16, got {dtype}.")
        self.model.to(self._device[0]).eval()
        self.processor = ImageProcessor(self.model.config.image.image_size)
        self.choices = self._choose(0)
        self.failures = _table_of_failures([])
        self.verdicts = _table_of_verdicts([])
        self.warnings: list[str] = []
        self._bank: TextBank | None = None
        self._graphed = GraphedBatches(self._similarity, batch_size)

    def predict(
        self,
        images: Images,
        *,
        strict: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> pd.DataFrame:
        """Scores of all images that can be read; the others are in `failures`.

        Args:
            images: paths, PIL images, arrays [H, W] or [H, W, 3], `ImageFile` objects; or one file's or folder's path.
            strict: raise at the first image that cannot be read.
            progress: called with the number of images done and of all.
        Returns:
            a row an image, in order, with ``image`` (name or path; ``image 3`` for the fourth object without a path)
            and a float32 column of logits for each class.
        Raises:
            ImageError: with `strict`, an image cannot be read.
            UserError: the folder is empty, or a reading process died.
        """
        names, sources = _named(images)
        self.choices = self._choose(len(sources))
        failed: list[tuple[int, str]] = []
        self.warnings = []
        rows: list[int] = []
        verdicts: list[tuple[str, Verdict]] = []
        scores: list[torch.Tensor] = []
        if progress:
            progress(0, len(sources))
        batches = read_batches(
            sources,
            self.processor,
            batch_size=self.batch_size,
            workers=self.choices.workers[0],
            pin=self._device[0].type == "cuda",
        )
        for batch in batches:
            bad = dict(batch.failures)
            if batch.indices:
                part = self.score(batch.pixels)
                finite = part.isfinite().all(1)
                kept = [(i, v) for i, v, good in zip(batch.indices, batch.verdicts, finite.tolist()) if good]
                rows += [index for index, _ in kept]
                verdicts += [(names[index], verdict) for index, verdict in kept]
                scores.append(part[finite])
                bad.update(
                    {i: "has scores that are not finite" for i, g in zip(batch.indices, finite.tolist()) if not g}
                )
                self.warnings += [v.sentence(names[index]) for index, v in kept if not v.frontal]
            self.warnings += batch.warnings
            if bad and strict:
                index = min(bad)
                raise ImageError(names[index], bad[index])
            failed += sorted(bad.items())
            if progress:
                progress(len(rows) + len(failed), len(sources))
        self.failures = _table_of_failures([(names[index], reason) for index, reason in failed])
        self.verdicts = _table_of_verdicts(verdicts)
        values = torch.cat(scores).numpy() if scores else torch.empty(0, len(self.prompts)).numpy()
        table = pd.DataFrame(values, columns=list(self.prompts.classes))
        table.insert(0, "image", pd.Series([names[index] for index in rows], dtype=str))
        return table

    @torch.no_grad()
    def score(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pooled logits of prepared images: float [B, 3, S, S] -> float32 [B, classes] on the CPU."""
        pixels = pixels.to(self._device[0], non_blocking=True)
        # before a graph's capture, which has no place for the tokenizer
        self._texts()
        logits = self._graphed(pixels) if self.choices.graph[0] and len(pixels) else self._similarity(pixels)
        parts = logits.float().split(self.prompts.sizes, 1)
        return torch.stack([part.mean(1) if self.pool == "mean" else part.amax(1) for part in parts], 1).cpu()

    def _similarity(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of all prompts: [B, 3, S, S] -> [B, T], on the device."""
        device, dtype = self._device[0], self._dtype[0]
        # a graph would hold autocast's cached copies of weights by their addresses, after they are freed
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=device.type != "cuda"):
            images = self.model.encode_images(pixels)
            return self.model.similarity(images, self._texts(), batch_size=len(images), backend=self.backend)

    def _texts(self) -> TextBank:
        if self._bank is None:
            dtype = self._dtype[0]
            with torch.autocast(self._device[0].type, dtype, enabled=dtype != torch.float32):
                encoded = self.model.encode_texts(self.prompts.texts, batch_size=64)
                self._bank = self.model.text_bank(encoded if dtype == torch.float32 else encoded.to(dtype))
        return self._bank

    def _choose(self, images: int) -> Choices:
        workers = (self.workers, "asked for") if self.workers is not None else choose_workers(images)
        decoder = self.model.config.decoder
        device, dtype = self._device[0], self._dtype[0]
        try:
            if self.model.config.similarity == "decoder":
                backend = backends.choose(
                    self.backend, device=device, dtype=dtype, width=decoder.width, heads=decoder.heads,
                    other=decoder.other(),
                )  # fmt: skip
            else:
                name = self.model.config.similarity
                kind = "word_region" if name == "gloria" else name
                backend = similarities.choose(self.backend, kind=kind, device=device, dtype=dtype)
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from None
        return Choices(self._device, self._dtype, backend, workers, choose_graph(device, backend[0]))


def _check_words(prompts: PromptSet, mode: TextMode) -> None:
    """Raise where the model's cleaning leaves nothing of a prompt: it would score like any other empty text."""
    for name, texts in zip(prompts.classes, prompts.prompts):
        for text in texts:
            if not clean_text(text, mode):
                why = "keeps no sentence of one word" if mode == "published" else "keeps Latin letters and digits only"
                raise UserError(
                    f"The prompt {text!r} of class {name!r} is empty after the model's text cleaning, which {why}: "
                    "word it otherwise."
                )


def _choose_device(asked: torch.device | str | None, model: CARZero) -> tuple[torch.device, str]:
    if asked is None:
        if model.device.type != "cpu":
            return model.device, "the model is there"
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is present"
        return torch.device("cpu"), "no CUDA device is present"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"There is no device {str(asked)!r}: name cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"The device {asked} was asked for, but torch {torch.__version__} finds no CUDA device: use cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"The device {asked} was asked for, but there are {torch.cuda.device_count()} CUDA devices.")
    return device, "asked for"


def _named(images: Images) -> tuple[list[str], list[ImageSource]]:
    if isinstance(images, str | os.PathLike):
        images = list_images([images])
    names: list[str] = []
    sources: list[ImageSource] = []
    for number, image in enumerate(images):
        if isinstance(image, ImageFile):
            names.append(image.name)
            sources.append(image.path)
        else:
            if isinstance(image, str | os.PathLike):
                names.append(os.fspath(image))
            else:
                names.append(getattr(image, "filename", "") or f"image {number}")
            sources.append(image)
    return names, sources


def _table_of_failures(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image", "reason"], dtype=str)


def _table_of_verdicts(rows: list[tuple[str, Verdict]]) -> pd.DataFrame:
    columns = {
        "image": pd.Series([name for name, _ in rows], dtype=str),
        "frontal": pd.Series([verdict.frontal for _, verdict in rows], dtype=bool),
        "score": pd.Series([verdict.score for _, verdict in rows], dtype=float),
        "looks": pd.Series([verdict.looks for _, verdict in rows], dtype=str),
    }
    return pd.DataFrame(columns)
