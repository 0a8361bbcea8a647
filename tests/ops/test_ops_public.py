"""The public door: sentences for every wrong argument, the choice of a backend, packing, lightness."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from op_cases import SPEC, make_case

from carzero import gate
from carzero.ops import (
    DecoderWeights,
    PackCache,
    PackedWeights,
    ProjectedMemory,
    available,
    backends,
    choose,
    choose_recompute,
    pack_weights,
    pair_attention,
    pair_logits,
    project_memory,
)

CASE = make_case(3, 5, 7)
PAIRS = torch.tensor([[0, 1], [2, 4]])


WRONG_TYPE = torch.zeros(3, 7, 64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (
            {"queries": torch.randn(5, 32)},
            ValueError,
            r"the same width D, got memory.shape=\(3, 7, 64\) and queries.shape=\(5, 32\)",
        ),
        ({"queries": torch.randn(5)}, ValueError, r"queries must be \[Q, D\], got queries.shape=\(5,\)"),
        ({"queries": torch.randn(5, 64).double()}, TypeError, "the same dtype, got torch.float32 and torch.float64"),
        ({"memory": torch.randn(3, 64)}, ValueError, r"memory must be \[M, P, D\], got memory.shape=\(3, 64\)"),
        ({"memory": torch.randn(3, 0, 64)}, ValueError, "must have at least one row"),
        ({"memory": torch.randn(3, 7, 32)}, ValueError, "memory and weights must have the same width"),
        ({"memory": WRONG_TYPE}, TypeError, "memory must be one of float64, .*, float16, got torch.int64"),
        ({"queries": torch.randn(5, 64, device="meta")}, ValueError, "on the memory's device, got meta and cpu"),
        ({"row_count": torch.ones(3, 7)}, ValueError, r"must be int32 of shape \[M, P\] = \(3, 7\), got torch.float32"),
        ({"row_count": torch.ones(3, 6, dtype=torch.int32)}, ValueError, r"got torch.int32 of shape \(3, 6\)"),
        ({"row_count": torch.full((3, 7), -2, dtype=torch.int32)}, ValueError, "that a row stands for; got -2"),
        ({"pairs": PAIRS.int()}, ValueError, r"pairs must be int64 of shape \[N, 2\]"),
        ({"pairs": PAIRS[:, :1]}, ValueError, r"got torch.int64 of shape \(2, 1\)"),
        ({"pairs": PAIRS + 1}, IndexError, r"memory indices from 1 to 3, but there are 3: they must lie in 0 .. 2"),
        ({"pairs": torch.tensor([[0, -1]])}, IndexError, "query indices from -1 to -1, but there are 5"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must lie in \[0, 1\), got 1.0"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p=0.1 needs a seed"),
        ({"dropout_p": 0.1, "seed": torch.tensor([1, 2])}, ValueError, r"one element, got torch.int64 of shape \(2,\)"),
        ({"dropout_p": 0.1, "seed": 2**63}, ValueError, "seed must fit in 64 bits, got 9223372036854775808"),
        ({"direction": 2}, ValueError, "direction must be 0 .* or 1 .*, got 2"),
        ({"memory_offset": -1}, ValueError, r"memory_offset must lie in 0 .. 2\*\*32 - 1, got -1"),
        ({"query_offset": 2**32}, ValueError, "query_offset must lie in"),
        ({"backend": "tritn"}, ValueError, "one of auto, cuda, .*, reference, got 'tritn'; the nearest is 'triton'"),
        ({"recompute": "ful"}, ValueError, "one of auto, full, layer, none, got 'ful'; the nearest is 'full'"),
        ({"original_rows": 6}, ValueError, "original_rows must be at least 7, the rows that memory and row_count"),
        ({"tile_pairs": 0}, ValueError, "tile_pairs must be a positive number of pairs or None, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_are_sentences(change: dict, kind: type[Exception], sentence: str) -> None:
    arguments = {"memory": CASE.memory, "queries": CASE.queries, "weights": CASE.weights, **change}
    with pytest.raises(kind, match=sentence) as raised:
        pair_logits(**arguments)
    assert str(raised.value).startswith("pair_logits: ")
    assert str(raised.value).endswith(".")


def test_projected_memory_errors() -> None:
    bank = project_memory(CASE.memory, CASE.weights)
    with pytest.raises(ValueError, match="a projected memory is a constant"):
        pair_logits(bank, CASE.queries, CASE.weights)
    with torch.no_grad():
        with pytest.raises(ValueError, match="a projected memory has its own row_count"):
            pair_logits(bank, CASE.queries, CASE.weights, row_count=torch.ones(3, 7, dtype=torch.int32))
        with pytest.raises(ValueError, match=r"must be \[M, P, L, 2, D\] with \(L, 2, D\) = \(2, 2, 64\)"):
            pair_logits(ProjectedMemory(bank.kv[:, :, :1]), CASE.queries, CASE.weights)
    with pytest.raises(TypeError, match="an int would lose the M axis"):
        bank[0]


def test_attention_needs_room_for_the_original_rows() -> None:
    count = torch.ones(3, 7, dtype=torch.int32)
    count[1, 6] = 10
    with pytest.raises(ValueError, match="original_rows must be at least 16, the rows that memory and row_count stand"):
        pair_attention(CASE.memory, CASE.queries, CASE.weights, row_count=count, original_rows=15)


def choice(backend: str = "auto", dtype: torch.dtype = torch.float32, **need) -> tuple[str, str]:
    return choose(backend, **{"device": torch.device("cpu"), "dtype": dtype, "width": 64, "heads": 4, **need})


def test_reference_and_torch_are_always_available() -> None:
    for name in ("reference", "torch"):
        assert available(name) == (True, "plain torch")
        assert available(name, "cuda")[0]


#: What `backends.cuda.library` says on a machine without nvcc.
NOT_BUILT = "its kernels are not built: put nvcc on PATH and run `pip install -e .` again"


def test_a_core_that_is_not_built_and_unknown_names_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.cuda, "library", lambda: (None, NOT_BUILT))
    assert available("cuda", "cuda") == (False, NOT_BUILT)
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'gpu'; the nearest is"):
        available("gpu")


def test_triton_runs_on_recent_cuda_devices_and_interpreted_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_version", lambda: ("3.7.1", ""))
    monkeypatch.setattr(backends.cuda, "library", lambda: (None, NOT_BUILT))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.delenv(backends.INTERPRET, raising=False)
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    assert available("triton", "cuda") == (False, "needs compute capability 8.0, this device has 7.5")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert available("triton", "cuda") == (True, "triton 3.7.1")
    cuda = torch.device("cuda")
    assert choice(device=cuda) == ("triton", f"triton: triton 3.7.1; not cuda: {NOT_BUILT}")
    assert choice(device=cuda, recompute="none")[0] == "triton"
    assert choice(device=cuda, recompute="layer")[0] == "torch"
    assert choice(device=cuda, dtype=torch.float64)[0] == "torch"
    assert "supports recompute='full' and 'none' only" in choice(device=cuda, recompute="layer")[1]
    able, why = available("triton", "cpu")
    assert (able, why) == (
        False, "runs on CUDA devices; on a CPU only in tests, through its interpreter (TRITON_INTERPRET=1)"
    )  # fmt: skip

    monkeypatch.setenv(backends.INTERPRET, "1")
    assert available("triton", "cpu") == (True, "triton 3.7.1, interpreted: for tests")
    assert "TRITON_INTERPRET is set" in available("triton", "cuda")[1]
    assert choice("triton")[0] == "triton"
    name, reason = choice()
    assert name != "triton"
    assert "not triton: its interpreter is for tests, and has to be asked for" in reason
    assert "triton" not in {backend for backend, _ in gate.runnable()}


def test_a_triton_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.INTERPRET, "1")
    monkeypatch.setattr(backends, "_triton_version", backends._triton_version.__wrapped__)
    monkeypatch.setitem(sys.modules, "triton.language", None)
    able, why = available("triton", "cpu")
    assert not able
    assert why.startswith("triton cannot be imported (")


def test_automatic_choice_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(backends.cuda, "library", lambda: (None, NOT_BUILT))
    name, reason = choice()
    assert name == ("cpp" if available("cpp")[0] else "torch")
    assert f"not cuda: {NOT_BUILT}" in reason
    assert choice(dtype=torch.float64)[0] == "torch"
    assert choice(recompute="none")[0] == "torch"
    assert choice(heads=8)[0] == "torch"
    assert choice(device=torch.device("cuda"))[0] == "torch"


def test_why_cpp_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_native", lambda: (True, "native extension loaded"))
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    assert choice()[0] == "cpp"
    for need, why in [
        ({"dtype": torch.float64}, "supports float32, bfloat16 and float16, not float64"),
        ({"heads": 8}, "supports head widths that are multiples of 16, not 8"),
        ({"recompute": "none"}, "supports recompute='full' only"),
        ({"device": torch.device("cuda")}, "runs on CPU tensors, not on cuda"),
        ({"projected_backward": True}, "has no backward through a projected memory"),
    ]:
        assert f"not cpp: {why}" in choice(**need)[1]
        with pytest.raises(RuntimeError, match=f"backend='cpp' was asked for and cannot run this call: {why}. Use"):
            choice("cpp", **need)


def test_no_extension_is_said_and_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str):
        raise ModuleNotFoundError("No module named 'carzero._C'", name="carzero._C")

    monkeypatch.setattr(backends.importlib, "import_module", missing)
    backends._native.cache_clear()
    try:
        assert available("cpp") == (
            False, "the native extension is not built: install g++ and run `pip install -e .` again"
        )  # fmt: skip
        assert choice()[0] == "torch"
    finally:
        backends._native.cache_clear()


def test_the_environment_replaces_auto_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT, "reference")
    assert choice() == ("reference", "CARZERO_BACKEND=reference")
    assert choice("torch") == ("torch", "asked for")
    monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
    monkeypatch.setattr(backends.cuda, "library", lambda: (None, NOT_BUILT))
    with pytest.raises(
        RuntimeError, match="CARZERO_BACKEND=cuda was asked for and cannot run this call: its kernels are"
    ):
        pair_logits(CASE.memory, CASE.queries, CASE.weights)
    monkeypatch.setenv(backends.ENVIRONMENT, "refrence")
    with pytest.raises(ValueError, match=r"CARZERO_BACKEND must be one of .* the nearest is 'reference'"):
        choice()


def test_recompute_is_chosen_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(backends, "free_bytes", lambda _: 1000 * 2**20)
    tape = {"none": 400 * 2**20, "layer": 100 * 2**20}

    def choose(recompute: str, backend: str, share: float) -> tuple[str, str]:
        return choose_recompute(
            recompute, backend=backend, device=cpu, tape_bytes=lambda mode: round(share * tape[mode])
        )  # fmt: skip

    assert choose("auto", "torch", 0.25) == ("none", "a tape of 100 MiB beside 1000 MiB free")
    assert choose("auto", "torch", 0.26) == ("layer", "a tape of 26 MiB beside 1000 MiB free")
    assert choose("auto", "torch", 1.01) == ("full", "a tape of 101 MiB beside 1000 MiB free is above 10%")
    assert choose("auto", "cpp", 0.0) == ("full", "cpp writes no tape")
    assert choose("none", "torch", 1e6) == ("none", "asked for")
    monkeypatch.setattr(backends, "free_bytes", lambda _: None)
    assert choose("auto", "torch", 0.0) == ("full", "free memory is not known")


def test_cache_packs_again_only_after_a_write() -> None:
    weights = CASE.weights.map(lambda t: t.detach().clone())
    cache = PackCache()
    with torch.no_grad():
        first = cache.get(weights, torch.float32)
        assert isinstance(first, PackedWeights)
        assert cache.get(DecoderWeights.from_flat(SPEC, weights.flat()), torch.float32) is first
        assert cache.get(weights, torch.bfloat16) is not first
        second = cache.get(weights, torch.float32)
        weights.layers[1][4].mul_(2)
        third = cache.get(weights, torch.float32)
        assert third is not second
        how = {"backend": "auto"}
        torch.testing.assert_close(
            pair_logits(CASE.memory, CASE.queries, third, **how), pair_logits(CASE.memory, CASE.queries, weights, **how)
        )
        replaced = replace(weights, norm_weight=weights.norm_weight.clone())
        assert cache.get(replaced, torch.float32) is not third


def test_cache_steps_aside() -> None:
    cache = PackCache()
    assert cache.get(CASE.weights, torch.float32) is CASE.weights
    with torch.inference_mode():
        made_here = CASE.weights.map(torch.clone)
        assert cache.get(made_here, torch.float32) is made_here
    frozen = CASE.weights.map(torch.Tensor.detach)
    assert isinstance(cache.get(frozen, torch.float32), PackedWeights)


def test_pack_weights_says_what_it_packed_for() -> None:
    packed = pack_weights(CASE.weights)
    assert packed.dtype == torch.float32
    assert packed.spec == SPEC
    assert (packed.blob is not None) == (choice()[0] == "cpp")
    assert pack_weights(CASE.weights, torch.float64).blob is None


def test_ops_needs_torch_and_numpy_alone() -> None:
    code = (
        "import sys, carzero.ops\n"
        "heavy = {'timm', 'transformers', 'cv2', 'pandas', 'PIL', 'rich', 'tokenizers', 'safetensors', 'triton'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
