"""What may be imported from where; the layers inside `carzero` are import-linter's (pyproject.toml)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

HEAVY = (
    "timm", "torchvision", "transformers", "tokenizers", "safetensors", "huggingface_hub", "cv2", "PIL", "pandas",
    "rich", "accelerate", "pyarrow", "jsonargparse", "matplotlib", "jinja2", "sklearn", "scipy", "pydicom", "gdcm",
    "spacy", "negspacy", "openai", "pydantic", "onnx", "onnxruntime", "onnxscript", "gradio",
)  # fmt: skip


def modules_after(statement: str) -> tuple[set[str], float]:
    """Top-level modules loaded by a statement beyond those of torch, and its seconds, in a fresh interpreter."""
    code = (
        "import json, sys, time, numpy, torch; before = set(sys.modules); start = time.perf_counter()\n"
        f"{statement}\n"
        "seconds = time.perf_counter() - start\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(json.dumps([sorted(new), seconds]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, seconds = json.loads(done.stdout)
    return set(names), seconds


@pytest.mark.parametrize("statement", ["import carzero", "import carzero.cli", "import carzero.ops"])
def test_import_is_light(statement: str) -> None:
    names, seconds = modules_after(statement)
    assert "carzero" in names
    assert names.isdisjoint(HEAVY), sorted(names.intersection(HEAVY))
    assert seconds < 2.0


@pytest.mark.parametrize(
    "statement",
    [
        "import carzero.ops", "import carzero.similarities", "import carzero.dropin", "from carzero import SimRDecoder",
        "from carzero import patch",
    ],
)  # fmt: skip
def test_the_op_and_its_doors_load_nothing_beside_torch_and_numpy(statement: str) -> None:
    names, _ = modules_after(statement)
    assert names - set(sys.stdlib_module_names) == {"carzero"}


def test_every_public_name_resolves() -> None:
    import carzero

    missing = [name for name in carzero.__all__ if not hasattr(carzero, name)]
    assert missing == []


def imported_roots(path: Path) -> set[str]:
    """First components of what a file imports; relative imports are siblings and left out."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots.add((node.module or "").split(".")[0])
    return roots


def test_kernels_import_torch_triton_and_siblings_only() -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    found = {path.name: imported_roots(path) - allowed for path in (ROOT / "kernels").rglob("*.py")}
    assert "__init__.py" in found
    assert {name: roots for name, roots in found.items() if roots} == {}


def test_ops_import_torch_and_numpy_only() -> None:
    allowed = {"torch", "numpy", "carzero", *sys.stdlib_module_names}
    folders = [ROOT / "carzero" / name for name in ("ops", "similarities", "dropin")]
    found = {path.name: imported_roots(path) - allowed for folder in folders for path in folder.rglob("*.py")}
    assert {"spec.py", "blocks.py", "patching.py"} <= set(found)
    assert {name: roots for name, roots in found.items() if roots} == {}
