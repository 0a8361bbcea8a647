"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The package index carries torchvision for Linux x86-64 as a CUDA build only. Its compiled operators need libtorch_cuda,
so beside a CPU torch they do not load and `import torchvision` fails with "operator torchvision::nms does not exist".
timm and every model of transformers import torchvision when it is installed, and fail with it. Declaring the two
operators beforehand is all that is missing; nothing is imported here.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

_LIBRARY: torch.library.Library | None = None


def guard_torchvision() -> bool:
    """Declare torchvision's missing operators where a CUDA torchvision sits beside a CPU torch; True if it did."""
    global _LIBRARY
    if _LIBRARY is not None or torch.version.cuda is not None or torch.version.hip is not None:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text()
    if not re.search(r"^cuda = '", version, re.M) and "+cu" not in version:
        return False  # a CPU build brings its own operators
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True
