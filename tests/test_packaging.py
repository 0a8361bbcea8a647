"""What a source archive and a wheel carry, and that the version stands in one place."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def build(tmp_path: Path, what: str) -> Path:
    """Build ``"sdist"`` or ``"wheel"`` from a copy of the tree, without the native extension."""
    copy = tmp_path / "tree"
    everywhere = {"__pycache__", *(p.name for p in (ROOT / "carzero").glob("*.so"))}
    # top level only: carzero/demo is a package
    at_root = {".venv", ".git", "build", "dist", "demo", "runs", "carzero.egg-info"}
    shutil.copytree(ROOT, copy, ignore=lambda at, _: everywhere | at_root if Path(at) == ROOT else everywhere)
    out = tmp_path / "out"
    out.mkdir()
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(out)!r}))"
    environment = {**os.environ, "CARZERO_NATIVE": "0"}
    environment.pop("CARZERO_REQUIRE_NATIVE", None)
    subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, check=True, capture_output=True, text=True)
    (archive,) = out.iterdir()
    return archive


def test_every_package_is_listed() -> None:
    folders = {p.parent for p in (ROOT / "carzero").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"carzero.kernels"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_the_version_stands_in_one_place() -> None:
    stated = PROJECT["project"]["version"]
    assert version("carzero") == stated
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M).group(1) == stated
    literal = re.compile(r"""__version__\s*=\s*["']\d+\.\d""")
    assert [p for p in (ROOT / "carzero").rglob("*.py") if literal.search(p.read_text())] == []


def test_the_makefile_installs_what_the_build_requires() -> None:
    line = re.search(r"^BUILD_REQUIREMENTS := (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1)
    listed = {word.strip('"') for word in line.split()}
    assert listed - {"wheel"} == set(PROJECT["build-system"]["requires"])


def test_workflow_actions_are_pinned_by_commit() -> None:
    used = [
        line.partition("uses:")[2].strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [u for u in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", u)] == []


def test_source_archive_carries_what_a_build_needs(tmp_path: Path) -> None:
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    kernels = {str(p.relative_to(ROOT)) for p in (ROOT / "kernels").rglob("*.py")}
    needed = {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "NOTICE", "README.md", "carzero/ops/spec.py"}
    assert native, "csrc is empty"
    assert (needed | native | kernels) - names == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


def test_wheel_carries_modules_templates_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "carzero").rglob("*.py")}
    pages = {str(p.relative_to(ROOT)) for p in (ROOT / "carzero").rglob("*.html")}
    kernels = {f"carzero/kernels/{p.relative_to(ROOT / 'kernels')}" for p in (ROOT / "kernels").rglob("*.py")}
    assert (modules | pages | kernels) - names == set()
    assert {Path(n).name for n in names} >= {"LICENSE", "NOTICE"}


def test_pure_python_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Without a compiler the op runs on `torch`, and says why not on `cpp`."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"""
import sys
# an editable install would lend its extension
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import carzero, torch
assert carzero.__file__.startswith({str(tmp_path)!r}), carzero.__file__
from carzero.ops import pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights
spec = DecoderSpec(width=32, layers=2, heads=2, ffn=48, head_hidden=(16, 16, 16))
weights = DecoderWeights.random(spec, std=0.2)
memory, queries = torch.randn(3, 5, 32), torch.randn(4, 32)
ours = pair_logits(memory, queries, weights)
truth = pair_logits(*(t.double() for t in (memory, queries)), weights.to(torch.float64), backend="reference")
assert torch.allclose(ours.double(), truth, rtol=1e-4, atol=1e-5)
try:
    pair_logits(memory, queries, weights, backend="cpp")
except Exception as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cpp" in done.stdout


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_is_the_trees_and_installs(wheel: Path, tmp_path: Path) -> None:
    """Nothing gets lost on the way, nothing else comes along, and a clean environment can use it."""
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert {"Makefile", "constraints.txt", "SECURITY.md", "docs/conf.py", "tests/test_packaging.py"} <= names
    assert [n for n in names if n.endswith((".so", ".pyc", ".safetensors", ".ckpt", ".dcm"))] == []
    (tree,) = (tmp_path / "unpacked").iterdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    native_off = {**os.environ, "CARZERO_NATIVE": "0"}
    native_off.pop("CARZERO_REQUIRE_NATIVE", None)
    command = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(tree)]
    subprocess.run(command, env=native_off, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as ours, zipfile.ZipFile(wheel) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())
        folders = {name.split("/")[0] for name in ours.namelist()}
        assert folders == {"carzero", f"carzero-{PROJECT['project']['version']}.dist-info"}
    # without the extension: sources, recipes and templates, of which the largest is some tens of KiB
    assert built.stat().st_size < 2 * 2**20

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "clean")], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(built)], check=True, capture_output=True)
    # torch and numpy are lent by the running environment
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    for module in ("torch", "numpy"):
        folder = Path(importlib.util.find_spec(module).origin).parents[1]
        (Path(site) / f"{module}.pth").write_text(f"{folder}\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = (
        "import carzero, torch; d = carzero.SimRDecoder(carzero.DecoderSpec(width=32, ffn=48)); print(carzero.__file__)"
    )
    code += "; print(tuple(d(torch.randn(3, 5, 32), torch.randn(4, 32)).shape))"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, shape = done.stdout.splitlines()
    assert Path(file).is_relative_to(site)
    assert shape == "(3, 4)"
    script = tmp_path / "clean" / "bin" / "carzero"
    said = subprocess.run([script, "--version"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"carzero {PROJECT['project']['version']}"
