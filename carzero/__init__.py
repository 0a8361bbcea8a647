"""Fast CARZero: zero-shot classification and grounding of chest radiographs by all-pairs cross-attention."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ._torchvision_guard import guard_torchvision

guard_torchvision()

try:
    __version__ = version("carzero")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

# public name -> module that defines it; imported on first use, so that `import carzero` stays light
_PUBLIC = {
    "load": "carzero.models.checkpoint",
    "CARZero": "carzero.models.carzero",
    "CARZeroConfig": "carzero.models.config",
    "SimRDecoder": "carzero.models.decoder",
    "DecoderSpec": "carzero.ops.spec",
    "DecoderWeights": "carzero.ops.spec",
    "ImageProcessor": "carzero.data.images",
    "patch": "carzero.dropin",
    "ZeroShotClassifier": "carzero.zeroshot.classify",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from carzero.data.images import ImageProcessor as ImageProcessor
    from carzero.dropin import patch as patch
    from carzero.models.carzero import CARZero as CARZero
    from carzero.models.checkpoint import load as load
    from carzero.models.config import CARZeroConfig as CARZeroConfig
    from carzero.models.decoder import SimRDecoder as SimRDecoder
    from carzero.ops.spec import DecoderSpec as DecoderSpec
    from carzero.ops.spec import DecoderWeights as DecoderWeights
    from carzero.zeroshot.classify import ZeroShotClassifier as ZeroShotClassifier


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'carzero' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
