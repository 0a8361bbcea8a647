"""The compiled kernels, without a GPU: what they use, that they multiply on tensor cores, that the library loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import binary
import pytest
import torch

from carzero import diagnostics
from carzero.ops import backends, cuda


@pytest.fixture(scope="module")
def built() -> tuple[str, ...]:
    targets, why = cuda.library()
    if targets is None:
        nvcc = "nvcc is not on PATH" if shutil.which("nvcc") is None else "nvcc is here"
        pytest.skip(f"cuda: {why} ({nvcc})")
    return targets


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads(binary.TABLE.read_text())


def test_every_kernel_is_as_the_table_says(built: tuple[str, ...], table: dict) -> None:
    """Spills and tensor-core instructions always; registers where the same nvcc compiled."""
    found = binary.read()
    assert {arch.removeprefix("sm_") for arch in found} == set(built)
    same = cuda.library()[1].endswith(f"nvcc {table['nvcc']}")
    wrong = []
    for arch, kernels in found.items():
        expected = table["kernels"].get(arch)
        if expected is None:
            continue
        assert kernels.keys() == expected.keys(), arch
        for name, facts in kernels.items():
            if facts["spills"]:
                wrong.append(f"{arch} {name}: {facts['spills']} spill instructions")
            if facts["products"] == 0:
                wrong.append(f"{arch} {name}: no tensor-core instruction")
            if same and facts["registers"] > expected[name]["registers"]:
                wrong.append(
                    f"{arch} {name}: {facts['registers']} registers, the table has {expected[name]['registers']}"
                )
    assert wrong == []


def test_the_table_has_no_spill(table: dict) -> None:
    assert set(table["kernels"]) == {"sm_80", "sm_90a", "sm_100"}
    assert not any(facts["spills"] for kernels in table["kernels"].values() for facts in kernels.values())


def test_wgmma_is_used_where_it_is_an_instruction(table: dict) -> None:
    """Forward: twelve products of scores, for each of the values' three panels one per 16 keys. Backward, twice, for
    the groups' two widths: twelve of scores, twelve of weights' gradients, for d_k and d_v one per 16 queries, for
    each half of d_q one per 16 keys. Where registers are short the compiler waits for each product: not here."""
    for arch, kernels in table["kernels"].items():
        found = {name: facts for name, facts in kernels.items() if name.startswith("wgmma")}
        both = {"wgmma", "wgmma_backward"}
        assert {name.partition("<")[0] for name in found} == (both if arch == "sm_90a" else set())
        for name, facts in found.items():
            tiles, other = (int(x) for x in name.rstrip(">").split(", ")[1:])
            assert 3 * facts["waits"] < facts["products"], name
            if name.startswith("wgmma<"):
                assert facts["products"] >= 4 * other + other * tiles, name
                assert facts["registers"] <= 65536 // 384 // 8 * 8
            else:
                assert facts["products"] >= 2 * (12 + 12 + 4 + 4 + 2 * other * -(-tiles // 2)), name
                assert facts["registers"] <= 65536 // 512


def test_shared_memory_is_as_the_table_says(library, table: dict) -> None:
    found = binary.shared()
    assert found == table["shared"]
    limits = {"A100": 166912, "H100": 232448}
    assert all(bytes_ <= limits[name.rpartition(" ")[2]] for name, bytes_ in found.items())


def test_the_page_s_tables_are_the_table(table: dict) -> None:
    page = (binary.TABLE.parents[2] / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert binary.tables(table) in page


def test_the_library_needs_no_cuda_in_torch(built: tuple[str, ...]) -> None:
    done = subprocess.run(["ldd", str(binary.LIBRARY)], capture_output=True, text=True, check=True)
    assert "libcuda" not in done.stdout
    assert "libtorch_cuda" not in done.stdout
    assert "libtorch_python" not in done.stdout


def test_the_schemas_are_those_of_the_emulation(built: tuple[str, ...]) -> None:
    import emulated_ops

    for schema in emulated_ops.SCHEMAS:
        op = getattr(torch.ops.carzero_cuda, schema.partition("(")[0]).default
        assert str(op._schema) == f"carzero_cuda::{schema}"


def test_info_says_what_it_was_built_for(built: tuple[str, ...]) -> None:
    status = diagnostics.statuses()["cuda"]
    assert f"built for sm_{', sm_'.join(built)} by nvcc" in status["reason"]


def test_it_is_refused_on_the_cpu_with_a_reason() -> None:
    need = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "width": 768, "heads": 4}
    with pytest.raises(RuntimeError, match=r"backend='cuda' was asked for and cannot run this call: .*Use backend="):
        backends.choose("cuda", **need)
    assert backends.choose("auto", **need)[0] != "cuda"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": torch.float32}, "supports bfloat16 and float16, not float32"),
        ({"width": 80}, "multiples of 16 up to 256, not 20"),
        ({"width": 2048}, "multiples of 16 up to 256, not 512"),
        ({"rows": 257}, "memories of up to 256 rows, not 257"),
    ],
    ids=["dtype", "odd", "wide", "rows"],
)
def test_calls_beyond_the_kernels_are_refused_with_the_rule(
    monkeypatch: pytest.MonkeyPatch, change: dict, why: str
) -> None:
    monkeypatch.setattr(cuda, "available", lambda device: (True, "here"))
    need = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "width": 768, "heads": 4, "rows": 197, **change}
    with pytest.raises(RuntimeError, match=why):
        backends.choose("cuda", **need)
    assert backends.choose("cuda", **{**need, "dtype": torch.float16, "width": 768, "rows": 256})[0] == "cuda"


def test_auto_waits_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "available", lambda device: (True, "here"))
    name, reason = backends.choose(
        "auto", device=torch.device("cuda"), dtype=torch.bfloat16, width=768, heads=4, rows=197
    )
    assert name != "cuda"
    assert "not cuda: not yet measured to be faster; ask for it by name" in reason


def test_a_source_tree_without_the_library_says_so() -> None:
    code = (
        "from pathlib import Path\n"
        "from carzero.ops import cuda\n"
        "cuda._LIBRARY = Path('/nonexistent/libcarzero_cuda.so')\n"
        "print(cuda.library())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "its kernels are not built: put nvcc on PATH" in done.stdout
