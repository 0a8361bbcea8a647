# make demo and make test do all the set-up themselves: they share .venv, made when it is missing.
# A bare Debian or Ubuntu machine needs: $(APT_LINE)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

APT_LINE := sudo apt-get install -y python3-venv python3-dev make g++
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DEMO ?= demo
# Test workers: more than eight only compete for memory bandwidth.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))

# The same list as [build-system] requires in pyproject.toml (tests/test_packaging.py compares them), and wheel.
BUILD_REQUIREMENTS := "setuptools>=77" "cmake>=3.26" ninja "pybind11>=3.0" wheel
NATIVE := setup.py $(wildcard CMakeLists.txt) $(shell find csrc -type f)
# A compiler that comes later is another target, so that the next make builds the extension.
COMPILER := $(shell [ "$${CARZERO_NATIVE-}" = 0 ] || command -v "$${CXX:-c++}" || command -v g++ || command -v clang++ || true)
BUILT := $(STAMP)-carzero-$(if $(COMPILER),native,pure)
# The tools of the environment (cmake, ninja) must be found by the build, whatever is active in the caller's shell.
PIP := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-all lint bench docs sbom build clean distclean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: build  ## draw radiographs, train a small model, classify, write demo/index.html (QUICK=1: in 90 seconds)
	@$(BIN)/carzero demo --out "$(DEMO)" $(if $(QUICK),--quick)

test: lint  ## style, types, import direction, README blocks, commands, every test that is not slow
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: lint  ## the exhaustive tests too
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --timeout=7200

lint: build
	@echo "+ ruff, mypy, import-linter"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: build  ## compare the op's backends with the published decoder here; writes benchmarks/results/
	@$(BIN)/carzero info --check
	$(BIN)/python benchmarks/record.py

docs: build  ## the documentation site, in build/docs; any warning fails
	@$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs
	echo "wrote build/docs/index.html"

sbom:  ## what a wheel brings along (dist/carzero.cdx.json), and whether any of it has a known hole: make sbom WHEEL=dist/x.whl
	@test -n "$(WHEEL)" || { echo "make: name the wheel: make sbom WHEEL=dist/carzero-X.Y.Z-....whl" >&2; exit 2; }
	rm -rf build/sbom
	$(PYTHON) -m venv build/sbom/clean
	$(PYTHON) -m venv build/sbom/tools
	build/sbom/clean/bin/pip install -c constraints.txt "$(WHEEL)"
	build/sbom/tools/bin/pip install cyclonedx-bom pip-audit
	mkdir -p dist
	build/sbom/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON \
	  --output-file dist/carzero.cdx.json build/sbom/clean/bin/python
	build/sbom/clean/bin/pip freeze --exclude carzero | sed -E 's/\+[a-z0-9.]+$$//' > build/sbom/parts.txt
	build/sbom/tools/bin/pip-audit --strict --no-deps --disable-pip -r build/sbom/parts.txt

build: $(BUILT)  ## the environment and the native extension

clean:  ## remove build outputs and caches; the next build compiles again
	@rm -rf build dist *.egg-info carzero/_C*.so carzero/libcarzero_*.so $(STAMP)-carzero-*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean  ## remove the environment as well
	@rm -rf $(VENV)

# --- the environment ---------------------------------------------------------------------------------------------

$(STAMP)-python:
	@if ! command -v $(PYTHON) >/dev/null; then
	  echo "make: $(PYTHON) is missing. Install it:  $(APT_LINE)" >&2; exit 1
	fi
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
	  echo "make: Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V). Choose another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1
	fi
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	  if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then
	    echo "make: python3-venv is missing. Install it:  $(APT_LINE)" >&2; exit 1
	  fi
	  site=
	  if $(PYTHON) -W ignore -c 'import sys, torch; sys.exit(not torch.version.cuda or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; then
	    echo "make: $(PYTHON) has a CUDA build of torch; $(VENV) uses it"
	    site=--system-site-packages
	  fi
	  $(PYTHON) -m venv $$site $(VENV)
	fi
	touch $@

# torch first, so that nothing else chooses its version; then the triton that belongs to it, for the tests of the
# Triton kernels on CPU (a CUDA torch brings its own). From here on the installed torch is held by a constraint.
$(STAMP)-torch: $(STAMP)-python constraints.txt
	@if ! $(BIN)/python -W ignore -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; then
	  echo "make: installing torch (several GB where pip finds no CPU build of it)"
	  $(PIP) install -c constraints.txt "torch>=2.11" numpy
	fi
	torch=$$($(BIN)/python -W ignore -c 'import torch; print(torch.__version__.split("+")[0])')
	echo "torch==$$torch" > $(VENV)/constraints.txt
	if ! $(BIN)/python -W ignore -c 'import triton' 2>/dev/null; then
	  case "$$torch" in
	    2.11.*) triton=3.6.0 ;;
	    2.12.*) triton=3.7.0 ;;
	    2.13.*) triton=3.7.1 ;;
	    2.14.*) triton=3.8.0 ;;
	    *) triton= ;;
	  esac
	  if [ -n "$$triton" ]; then
	    $(PIP) install -c $(VENV)/constraints.txt "triton==$$triton"
	  else
	    echo "make: no triton is known for torch $$torch; the tests of the Triton kernels will be skipped"
	  fi
	fi
	touch $@

$(BUILT): $(STAMP)-torch pyproject.toml $(NATIVE)
	@pure="so the op will run on the slower pure-torch backend on CPU. To mend it:  $(APT_LINE)"
	if [ -z "$(COMPILER)" ]; then
	  echo "make: no C++ compiler (or CARZERO_NATIVE=0), $$pure"
	elif ! $(BIN)/python -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())'; then
	  echo "make: Python.h is missing, $$pure"
	  export CARZERO_NATIVE=0
	fi
	$(if $(filter pyproject.toml %stamp-torch,$?),$(PIP) install -c $(VENV)/constraints.txt $(BUILD_REQUIREMENTS))
	$(PIP) install --no-build-isolation -c $(VENV)/constraints.txt $(if $(filter pyproject.toml %stamp-torch,$?),,--no-deps) -e ".[train,shards,evaluate,dicom,prompts,export,app,docs,dev]"
	rm -f $(STAMP)-carzero-*
	touch $@
