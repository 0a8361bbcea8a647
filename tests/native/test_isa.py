"""The choice of the instruction set, the facts of the build, and what the compiled objects contain."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh_choice(native):
    """The variable is read once in a process: forget the reading before and after."""
    native.reset_isa()
    yield
    native.reset_isa()


def test_chooses_the_strongest_that_runs(native, fresh_choice, monkeypatch):
    monkeypatch.delenv("CARZERO_CPU_ISA", raising=False)
    name, reason = native.selected_isa()
    candidates = [n for n, runs, _ in native.built_isas() if runs and not n.startswith("emulated")]
    assert name == candidates[-1]
    assert "strongest" in reason


def test_every_set_of_the_build_is_tested_here(native):
    missing = [name for name, runs, _ in native.built_isas() if not runs]
    if missing:
        pytest.skip(f"this CPU does not run {', '.join(missing)}: compiled, and tested in emulation only")


def test_environment_lowers_the_choice(native, isa, fresh_choice, monkeypatch):
    monkeypatch.setenv("CARZERO_CPU_ISA", isa)
    assert native.selected_isa() == (isa, f"CARZERO_CPU_ISA={isa}")


def test_asking_for_more_than_the_cpu_has_is_a_sentence(native, fresh_choice, monkeypatch):
    missing = [name for name, runs, _ in native.built_isas() if not runs]
    if not missing:
        pytest.skip("this CPU runs every instruction set of the build")
    monkeypatch.setenv("CARZERO_CPU_ISA", missing[-1])
    with pytest.raises(
        RuntimeError, match=rf"'{missing[-1]}' was asked for .* this CPU does not run it; it runs: default"
    ):
        native.selected_isa()
    # the failure is not remembered
    monkeypatch.setenv("CARZERO_CPU_ISA", "default")
    assert native.selected_isa()[0] == "default"


def test_unknown_name_lists_the_known_ones(native, fresh_choice, monkeypatch):
    monkeypatch.setenv("CARZERO_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match=r"'sse9' was asked for .* this build has only: default"):
        native.selected_isa()


def test_features_agree_with_the_kernel(native):
    cpuinfo = Path("/proc/cpuinfo")
    flags = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":")[1].split())
                break
    if not flags:
        pytest.skip("/proc/cpuinfo lists no x86 flags")
    assert native.cpu_features() == {name: name in flags for name in native.cpu_features()}


def test_build_facts(native):
    import torch

    info = native.build_info()
    assert info["openmp"] is True
    assert info["isas"] == [name for name, _, _ in native.built_isas()]
    assert info["torch_version"] == torch.__version__


def test_import_without_torch_is_a_sentence(native):
    code = (
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('carzero._C', {native.__file__!r})\n"
        "spec.loader.exec_module(u.module_from_spec(spec))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError: carzero._C: torch must be imported before it" in done.stderr


def isa_objects(kind: str, isa: str) -> list[Path]:
    pattern = f"build/cmake-*/CMakeFiles/carzero_{kind}_{isa}.dir/csrc/cpu/*.o"
    found = sorted(ROOT.glob(pattern))
    if not found:
        pytest.skip(f"no compiled objects at {pattern}")
    return found


def disassembly(path: Path) -> str:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    return subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("kind", ["products", "rows"])
def test_narrow_sets_contain_no_wide_registers(native, kind):
    for isa, forbidden in [("default", ("%ymm", "%zmm")), ("avx2", ("%zmm",))]:
        for path in isa_objects(kind, isa):
            text = disassembly(path)
            assert [register for register in forbidden if register in text] == [], path.name


@pytest.mark.parametrize(
    ("wide", "instructions"),
    [
        ("avx512", ["vfmadd231ps"]),
        ("avx512_bf16", ["vdpbf16ps"]),
        ("amx", ["ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease", "tilezero"]),
    ],
)
def test_wide_sets_contain_their_instructions(native, wide, instructions):
    path = next(p for p in isa_objects("products", wide) if p.name.startswith("gemm"))
    text = disassembly(path)
    assert "%zmm" in text
    assert [name for name in instructions if name not in text] == []


@pytest.mark.parametrize("kind", ["products", "rows"])
def test_sets_share_no_functions(native, kind):
    """A weak symbol outside its set's namespace could be linked in for all: AVX-512 code on a CPU without it."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    for isa in native.build_info()["isas"]:
        for path in isa_objects(kind, isa):
            lines = subprocess.run(
                ["nm", "-C", str(path)], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            shared = [line for line in lines if line[17:18] in "WVu" and f"carzero::cpu::isa_{isa}::" not in line]
            assert shared == [], path
