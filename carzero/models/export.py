"""A model as files for other runtimes: ONNX and torch.export programs, checked against the model when written."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from carzero.errors import UserError

from .carzero import CARZero
from .towers import ImageTower, PairScores, TextTower

Format = Literal["onnx", "torch"]
#: Version of the ONNX operators, which onnxruntime has since 1.14.
OPSET = 18
#: Largest difference that is taken for rounding, as a share of the largest value.
TOLERANCE = 1e-4

_SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
# texts of unequal length, words known and spelt, decimals
_TEXTS = (
    "There is pneumonia.",
    "There is no pleural effusion. The heart is enlarged.",
    "A calcified granuloma of 1.5 cm in the left lower lobe, unchanged since the previous study.",
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """One file.

    Args:
        path: where it lies.
        difference: largest absolute difference of any output from the model's own, over all drawn inputs.
        largest: largest absolute value of that output.
    """

    path: Path
    difference: float
    largest: float


def export(model: CARZero, folder: str | Path, formats: Sequence[Format] = get_args(Format)) -> list[Exported]:
    """Write image tower, text tower and pair scores, each checked on inputs of other sizes than it was traced with.

    Args:
        model: float32, with a tokenizer and `similarity` "decoder"; it is used in evaluation mode.
        folder: made where absent. Receives ``image``, ``text`` and ``scores`` (``.onnx``, ``.pt2``), ``tokenizer/``
            and ``export.json``, which names inputs, outputs, axes and preprocessing.
        formats: ``"onnx"`` (needs the extra ``export``), ``"torch"`` (torch.export), or both.

    Returns:
        every file with its largest difference from the model.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing, the model is not float32 or lacks what is needed.
        RuntimeError: a written file gives other numbers than the model.
    """
    folder = Path(folder)
    unknown = sorted(set(formats) - set(get_args(Format)))
    if unknown or not formats:
        raise UserError(f"export: formats must be among {', '.join(get_args(Format))}, got {list(formats)}.")
    if model.dtype != torch.float32:
        raise UserError(
            f"export: the model must be float32, got {model.dtype}; use carzero.load(path, dtype=torch.float32)."
        )
    if "onnx" in formats:
        _need_onnx()
    parts: dict[str, Any] = {"image": ImageTower(model), "text": TextTower(model), "scores": PairScores(model)}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with model.evaluating(), torch.no_grad():
        traced, *others = [_samples(model, count) for count in ((2, 3), (1, 1), (3, 2))]
        for name, part in parts.items():
            program = torch.export.export(part.eval(), traced[name], dynamic_shapes=_axes(model, part))
            for kind in formats:
                path = folder / (name + _SUFFIX[kind])
                run = _write(program, part, path)
                files.append(_checked(path, part, run, [traced[name], *(sample[name] for sample in others)]))
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "export.json").write_text(
        json.dumps(_description(model, parts, traced, files), indent=2) + "\n", encoding="utf-8"
    )
    return files


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export: ONNX needs {error.name}, which is not installed; pip install 'carzero[export]', or export the "
            "format torch alone."
        ) from None


def _samples(model: CARZero, count: tuple[int, int]) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of all three parts for so many drawn images and texts."""
    images, texts = count
    size, generator = model.config.image.image_size, torch.Generator().manual_seed(images)
    pixels = torch.randn(images, model.config.image.in_chans, size, size, generator=generator).to(model.device)
    with warnings.catch_warnings():
        # a small model may have to cut the longest
        warnings.simplefilter("ignore", UserWarning)
        tokens = model.text_encoder.tokenise(_TEXTS[:texts]).to(model.device)
    text = (tokens.input_ids, tokens.attention_mask)
    towers = (*ImageTower(model)(pixels), *TextTower(model)(*text))
    return {"image": (pixels,), "text": text, "scores": towers}


def _axes(model: CARZero, part: nn.Module) -> tuple[dict[int, Any], ...]:
    """The axes of each input that are free."""
    images, texts = torch.export.Dim("images"), torch.export.Dim("texts")
    # [CLS] and [SEP] at least
    pieces = torch.export.Dim("pieces", min=2, max=model.config.text.max_tokens)
    rows = torch.export.Dim("rows", min=1)
    if isinstance(part, ImageTower):
        return ({0: images},)
    if isinstance(part, TextTower):
        return ({0: texts, 1: pieces}, {0: texts, 1: pieces})
    # a memory of the global row alone has one row, for images and texts
    row = {} if model.config.decoder.memory_rows == "global" else {1: rows}
    return ({0: images}, {0: images}, {0: texts, **row}, {0: texts}, {0: texts, **row})


def _write(program: torch.export.ExportedProgram, part: Any, path: Path) -> Callable[..., Sequence[Tensor]]:
    """Write one file; returns what runs it as it was written."""
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        return lambda *inputs: _tuple(loaded(*inputs))
    with warnings.catch_warnings():
        # of torch's own code
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            program,
            f=path,
            input_names=part.inputs,
            output_names=part.outputs,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given: dict[str, np.ndarray] = {name: tensor.cpu().numpy() for name, tensor in zip(part.inputs, inputs)}
        return [torch.from_numpy(value) for value in session.run(list(part.outputs), given)]

    return run


def _checked(path: Path, part: nn.Module, run: Callable[..., Sequence[Tensor]], samples: Sequence[Any]) -> Exported:
    worst = Exported(path, 0.0, 0.0)
    for inputs in samples:
        for got, want in zip(run(*inputs), _tuple(part(*inputs)), strict=True):
            if got.shape != want.shape:
                raise RuntimeError(
                    f"export: {path.name} gives shape {tuple(got.shape)}, the model {tuple(want.shape)}."
                )
            difference, largest = float((got.cpu() - want.cpu()).abs().max()), float(want.abs().max())
            # not `>`: a NaN has to fail
            if not difference <= TOLERANCE * largest:
                raise RuntimeError(
                    f"export: {path.name} differs from the model by {difference:.3g} where values reach {largest:.3g}; "
                    f"the largest share that rounding explains is {TOLERANCE}."
                )
            if difference >= worst.difference:
                worst = Exported(path, difference, largest)
    return worst


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tensors(model: CARZero, traced: dict[str, tuple[Tensor, ...]]) -> dict[str, str]:
    """Dtype and shape of every input and output; named axes are free."""
    image, (image_rows, width) = model.config.image, traced["scores"][0].shape[1:]
    kinds = {"global+local": "pieces + 2", "local": "pieces + 1", "global": "1"}
    text_rows = kinds[model.config.decoder.memory_rows]
    return {
        "pixels": f"float32 [images, {image.in_chans}, {image.image_size}, {image.image_size}]",
        "image_memory": f"float32 [images, {image_rows}, {width}]",
        "image_query": f"float32 [images, {width}]",
        "input_ids": "int64 [texts, pieces], [CLS] first, [SEP] last, then padding",
        "attention_mask": "int64 [texts, pieces], 1 up to [SEP], then 0",
        "text_memory": f"float32 [texts, {text_rows}, {width}]",
        "text_query": f"float32 [texts, {width}]",
        "text_row_count": f"int32 [texts, {text_rows}], original rows that a row stands for, 0 where it is absent",
        "scores": "float32 [images, texts], raw logits",
    }


def _description(
    model: CARZero, parts: dict[str, Any], traced: dict[str, tuple[Tensor, ...]], files: Sequence[Exported]
) -> dict[str, Any]:
    """What a program needs to know that runs the files without this package."""
    import carzero

    config = model.config
    return {
        "carzero": carzero.__version__,
        "torch": str(torch.__version__),
        "opset": OPSET,
        "parts": {name: {"inputs": part.inputs, "outputs": part.outputs} for name, part in parts.items()},
        "tensors": _tensors(model, traced),
        "pixels": {"made_by": f"carzero.ImageProcessor({config.image.image_size})"},
        "texts": {
            "tokenizer": "tokenizer/",
            "cleaning": config.text_mode,
            "cleaned_by": "carzero.models.text.clean_text(text, mode)",
            "max_tokens": config.text.max_tokens,
        },
        "largest_difference": {file.path.name: file.difference for file in files},
        "notice": "Not a medical device.",
    }
