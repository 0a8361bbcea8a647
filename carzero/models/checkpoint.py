"""Opening and writing models: our own folder, a hub id, and the published checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carzero.errors import UserError

from .carzero import CARZero
from .config import CARZeroConfig
from .pickled import read_tensors
from .tokenizer import load_tokenizer
from .upstream import UpstreamModel, model_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_log = logging.getLogger("carzero")


def load(
    path_or_repo: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> CARZero:
    """Open a model for use, in evaluation mode.

    Args:
        path_or_repo: a folder that `CARZero.save_pretrained` wrote, a hub id of such a folder, or a file in the
            published ``.ckpt`` layout (read without executing anything in it).
        tokenizer: a tokenizer, its folder or its hub id; the published checkpoint brings none, our folders do.
        device: where to put the weights; None is the CPU.
        dtype: to cast the weights to; None keeps theirs.

    Raises:
        UserError: there is no model there, or it is not one that can be opened safely.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        model = load_folder(path, device=device, dtype=dtype)
    elif path.is_file():
        model = _load_published(path, device=device, dtype=dtype)
    elif _HUB_ID.fullmatch(str(path_or_repo)) and path.suffix not in (".ckpt", ".pt", ".pth", ".bin", ".safetensors"):
        model = load_folder(snapshot(str(path_or_repo)), device=device, dtype=dtype)
    else:
        raise UserError(f"carzero.load: there is no folder or file {str(path_or_repo)!r}.")
    if tokenizer is not None:
        given = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        model.text_encoder.set_tokenizer(given)
    return model


def read_published(path: Path, *, heads: int = 4) -> UpstreamModel:
    """The configuration and tensors of a published checkpoint under our names; the tensors lie in the mapped file.

    Raises:
        UserError: the file is no checkpoint, wants code executed, or its keys are not the published ones.
    """
    if path.suffix == ".safetensors":
        raise UserError(f"carzero.load: {path} is one file of a model folder; give the folder {path.parent}.")
    return model_tensors(_state_dict(read_tensors(path), path), heads=heads)


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        found = f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"{type(content)}"
        raise UserError(f"carzero.load: {path} holds no state_dict of tensors but {found}.")
    return state


def _load_published(path: Path, *, device: torch.device | str | None, dtype: torch.dtype | None) -> CARZero:
    upstream = read_published(path)
    _log.info("%s: dropped %s", path.name, upstream.dropped())
    return assemble(upstream.config, upstream.tensors, f"carzero.load: {path}", device, dtype)


def snapshot(repo: str, **options: Any) -> Path:
    """The folder of a hub repository's model files, downloaded where it is not cached; options as the hub's client.

    Raises:
        UserError: the hub does not know it or cannot be reached, and no copy is cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = [WEIGHTS, CONFIG, f"{TOKENIZER}/*"]
        return Path(snapshot_download(repo, allow_patterns=patterns, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"carzero.load: {repo!r} is no folder here, and as a hub id it cannot be had: the hub does not know it or "
            f"cannot be reached, and no copy is cached ({str(error).strip().splitlines()[0]})."
        ) from error


def save_folder(model: CARZero, folder: Path) -> None:
    """See `CARZero.save_pretrained`."""
    from safetensors.torch import save_file

    # the saved weights are the model's own from now on
    text = dataclasses.replace(model.config.text, pretrained=None)
    config = dataclasses.replace(model.config, text=text).to_json()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        made = Path(temporary)
        # the weights carry the configuration too, so that files of two models are told apart
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt", "carzero": config})
        (made / CONFIG).write_text(config, encoding="utf-8")
        # safetensors lets the owner alone read its file, whatever the umask
        (made / WEIGHTS).chmod(stat.S_IMODE((made / CONFIG).stat().st_mode))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(made / TOKENIZER)
            _replace_folder(made / TOKENIZER, folder / TOKENIZER)
        os.replace(made / CONFIG, folder / CONFIG)
        os.replace(made / WEIGHTS, folder / WEIGHTS)


def _replace_folder(new: Path, old: Path) -> None:
    old.mkdir(exist_ok=True)
    names = {file.name for file in new.iterdir()}
    for name in names:
        os.replace(new / name, old / name)
    for file in old.iterdir():
        if file.name not in names:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def load_folder(folder: Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CARZero:
    """See `CARZero.from_pretrained`."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    where = f"carzero.load: {folder}"
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{where} is not a model folder: it lacks {' and '.join(missing)}; carzero train and carzero convert write "
            "such folders."
        )
    text = (folder / CONFIG).read_text(encoding="utf-8")
    config = CARZeroConfig.from_json(text)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            written = (file.metadata() or {}).get("carzero")
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where}: {WEIGHTS} is damaged or no safetensors file ({error}).") from error
    if written is not None and CARZeroConfig.from_json(written) != config:
        raise UserError(
            f"{where}: {CONFIG} is not the one that {WEIGHTS} was written with; restore both from one model."
        )
    model = assemble(config, tensors, where, device, dtype)
    if (folder / TOKENIZER).is_dir():
        model.text_encoder.set_tokenizer(load_tokenizer(folder / TOKENIZER))
    return model


def assemble(
    config: CARZeroConfig,
    tensors: Mapping[str, Tensor],
    where: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> CARZero:
    """A model whose parameters are these tensors, without drawing random ones first; `where` opens error sentences."""
    with torch.device("meta"):
        model = CARZero(config)
    if not _materialise_buffers(model):
        model = CARZero(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        lists = (("missing", missing), ("unknown", unknown))
        parts = [f"{what} {', '.join(names[:3])}" for what, names in lists if names]
        raise UserError(
            f"{where}: the weights do not fit the configuration: {len(missing)} keys missing and {len(unknown)} "
            f"unknown; {'; '.join(parts)}."
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{where}: {name} must have shape {shape}, got {tuple(tensors[name].shape)}.")
    model.load_state_dict({name: _aligned(t) for name, t in tensors.items()}, strict=True, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, copied where its address in a mapped file would change the last bit of a matrix product."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def _materialise_buffers(model: nn.Module) -> bool:
    """Fill BERT's index tables, which no checkpoint holds; False where another unsaved buffer is met."""
    saved = model.state_dict().keys()
    for name, buffer in list(model.named_buffers()):
        if not buffer.is_meta or name in saved:
            continue
        owner, _, short = name.rpartition(".")
        if short == "position_ids":
            value = torch.arange(buffer.shape[-1], dtype=buffer.dtype).expand(buffer.shape).contiguous()
        elif short == "token_type_ids":
            value = torch.zeros(buffer.shape, dtype=buffer.dtype)
        else:
            return False
        setattr(model.get_submodule(owner), short, value)
    return True
