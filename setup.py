"""Builds the native extension by driving CMakeLists.txt; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_dir() -> Path | None:
    """Folder of the torch that the installing interpreter will use, also from inside an isolated build."""
    if os.environ.get("CARZERO_TORCH_DIR"):
        return Path(os.environ["CARZERO_TORCH_DIR"])
    try:
        import torch

        return Path(torch.__file__).parent
    except ImportError:
        pass
    # In pip's isolated build sys.prefix is still the user's environment, so its site-packages hold torch.
    for key in ("platlib", "purelib"):
        candidate = Path(sysconfig.get_paths()[key]) / "torch"
        if (candidate / "include" / "ATen" / "ATen.h").exists():
            return candidate
    return None


class CMakeExtension(Extension):
    """An extension whose sources are listed in CMakeLists.txt alone."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], optional=True)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        skip = self._reason_to_skip()
        if skip:
            if os.environ.get("CARZERO_REQUIRE_NATIVE") == "1":
                raise RuntimeError(f"carzero: the native extension was required and cannot be built: {skip}")
            print(
                f"carzero: installing without the native extension ({skip}); "
                "the op runs on the slower pure-torch backend on CPU.",
                file=sys.stderr,
            )
            return
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # setuptools' own build folder is temporary in editable installs: every build would be a full one.
        build = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        build.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DTORCH_ROOT={torch_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('CARZERO_BUILD_TYPE', 'Release')}",
            f"-Dpybind11_DIR={_pybind11_dir()}",
            f"-DCARZERO_EDITABLE={'ON' if self.editable_mode or self.inplace else 'OFF'}",
            f"-DCARZERO_CUDA={os.environ.get('CARZERO_CUDA', 'auto')}",
            f"-DCARZERO_CUDA_ARCHS={os.environ.get('CARZERO_CUDA_ARCHS', '80;90a;100')}",
        ]  # fmt: skip
        ninja = shutil.which("ninja")
        if ninja:
            # An isolated build's ninja is gone at the next build, so its path must not stay in the cache.
            configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.check_call(configure)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "--build", str(build), "--parallel", jobs])

    def copy_extensions_to_source(self) -> None:
        # editable installs: setuptools copies the extensions that it knows, not a library beside them
        super().copy_extensions_to_source()
        for library in (Path(self.build_lib) / "carzero").glob("libcarzero_*.so"):
            self.copy_file(str(library), str(ROOT / "carzero" / library.name))

    @staticmethod
    def _reason_to_skip() -> str | None:
        if os.environ.get("CARZERO_NATIVE") == "0":
            return "CARZERO_NATIVE=0"
        if torch_dir() is None:
            return "torch is not installed yet: install torch, then run the same command again"
        if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            return "no C++ compiler found: install g++"
        return None


def _pybind11_dir() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


setup(ext_modules=[CMakeExtension("carzero._C")], cmdclass={"build_ext": CMakeBuild})
