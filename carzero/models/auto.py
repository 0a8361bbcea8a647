"""Model folders for ``transformers.AutoModel``: ``import carzero.models.auto``, and `CARZero` is among its models.

`import carzero` stays light and leaves transformers alone, so this import is the one thing to do, and no code of a
repository is ever executed (no ``trust_remote_code``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from carzero.errors import UserError

from .carzero import CARZero
from .checkpoint import load_folder, snapshot
from .config import MODEL_TYPE, CARZeroConfig


class CARZeroAutoConfig(PreTrainedConfig):
    """What ``transformers.AutoConfig`` makes of a model folder's ``config.json``."""

    model_type = MODEL_TYPE

    @property
    def carzero(self) -> CARZeroConfig:
        """The same as `CARZero.config`."""
        known = CARZeroConfig().to_dict()
        return CARZeroConfig.from_dict({name: getattr(self, name) for name in known if hasattr(self, name)})


class CARZeroAutoModel:
    """Where ``transformers.AutoModel`` looks for a constructor; makes plain `CARZero` models."""

    config_class = CARZeroAutoConfig

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: CARZeroAutoConfig | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> CARZero:
        """Open a model folder or hub id; equal to `carzero.load`.

        Args:
            source: as `carzero.load` takes it, a published ``.ckpt`` apart.
            config: may be given; must be the folder's own.
            dtype: to cast the weights to; None or "auto" keeps theirs.
            revision, cache_dir, token, local_files_only: of the hub, as in transformers.
            others: anything else is an error, so that no wish is ignored.

        Raises:
            UserError: there is no model there, or an argument is not known here.
        """
        # AutoModel hands on what it decides itself
        ignored = {"trust_remote_code", "_from_auto", "adapter_kwargs", "code_revision", "_commit_hash"}
        unknown = sorted(name for name, value in others.items() if name not in ignored and value is not None)
        if unknown:
            raise UserError(
                f"AutoModel: carzero models do not take {', '.join(unknown)}; carzero.load(path, device=...) and "
                "torch's own methods do the rest."
            )
        if isinstance(dtype, str):
            wanted = None if dtype == "auto" else getattr(torch, dtype.removeprefix("torch."), None)
            if dtype != "auto" and not isinstance(wanted, torch.dtype):
                raise UserError(
                    f"AutoModel: dtype {dtype!r} is unknown to torch; float32, bfloat16 and float16 are known."
                )
            dtype = wanted
        folder = Path(source)
        if not folder.is_dir():
            folder = snapshot(
                str(source), revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
            )
        model = load_folder(folder, dtype=dtype)
        if config is not None and config.carzero != model.config:
            raise UserError(f"AutoModel: the configuration that was given is not that of {source}.")
        return model

    @classmethod
    def _from_config(cls, config: CARZeroAutoConfig, *, dtype: torch.dtype | None = None) -> CARZero:
        """``AutoModel.from_config``: a new model with random weights and no tokenizer."""
        return CARZero(config.carzero).to(dtype=dtype)


def register() -> None:
    """Make ``AutoConfig`` and ``AutoModel`` know ``model_type`` "carzero"; a second time changes nothing."""
    AutoConfig.register(MODEL_TYPE, CARZeroAutoConfig, exist_ok=True)
    AutoModel.register(CARZeroAutoConfig, CARZeroAutoModel, exist_ok=True)


register()
