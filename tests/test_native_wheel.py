"""A wheel with the native extension: what is in it, how large it is, and that nothing of the building machine is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

#: The wheel to look at; the workflow that builds wheels names it.
WHEEL = "CARZERO_WHEEL"


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    if not os.environ.get(WHEEL):
        pytest.skip(f"{WHEEL} names no wheel with the extension")
    return zipfile.ZipFile(os.environ[WHEEL])


def test_it_carries_the_operators_and_little_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert all(re.match(r"carzero(-[\w.]+\.dist-info)?/", n) for n in names)
    libraries = {n for n in names if ".so" in n}
    modules = {n for n in libraries if re.match(r"carzero/_C\.cpython-3\d+-", n)}
    assert len(modules) == 1
    assert libraries - modules - {"carzero/libcarzero_cuda.so"} == {"carzero/libcarzero_cpu.so"}
    # 2.5 MB of CPU code for seven instruction sets, 7 MB of CUDA code where nvcc was there
    assert Path(wheel.filename).stat().st_size < 12 * 2**20
    assert sum(wheel.getinfo(n).file_size for n in libraries if "cuda" not in n) < 6 * 2**20


def test_no_library_looks_for_torch_on_the_building_machine(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    for name in (n for n in wheel.namelist() if ".so" in n):
        said = subprocess.run(
            ["readelf", "-d", wheel.extract(name, tmp_path)], capture_output=True, text=True, check=True
        ).stdout
        paths = re.findall(r"\((?:RUNPATH|RPATH)\)\s+Library \w+: \[(.*)\]", said)
        assert [part for path in paths for part in path.split(":") if not part.startswith("$ORIGIN")] == [], name
        needed = re.findall(r"\(NEEDED\)\s+Shared library: \[(.*)\]", said)
        assert not any(n.startswith(("libtorch_python", "libpython", "libcudart")) for n in needed), (name, needed)
