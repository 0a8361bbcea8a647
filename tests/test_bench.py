"""The harness: the baseline computes the op, the operation counts are the stated ones, the memory probe sees bytes."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from carzero.bench.cases import Case, contenders, forward_flops, make_inputs
from carzero.bench.measure import GemmRate, Timing, peak_extra_bytes, take_turns
from carzero.bench.published import PublishedDecoder
from carzero.cli import main
from carzero.ops import pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights

SMALL = DecoderSpec(width=64, layers=2, heads=4, ffn=96, head_hidden=(64, 48, 32))


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_published_module_computes_the_op(head: str) -> None:
    spec = DecoderSpec(width=48, layers=3, heads=3, ffn=80, head=head, head_hidden=(40, 24, 16))
    weights = DecoderWeights.random(spec, dtype=torch.float64, std=0.2)
    memory, queries = torch.randn(3, 11, 48, dtype=torch.float64), torch.randn(5, 48, dtype=torch.float64)
    module = PublishedDecoder(weights).eval()
    truth = pair_logits(memory, queries, weights, backend="reference")
    torch.testing.assert_close(module(memory, queries), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "gigaflops"), [("images", 83.44), ("texts", 38.78)])
def test_operation_counts(kind: str, gigaflops: float) -> None:
    assert forward_flops(Case(kind=kind)) / 1e9 == pytest.approx(gigaflops, abs=0.01)


def test_operation_count_of_one_pair_is_the_sum_of_its_products() -> None:
    """M = Q = 1 and one layer, counted by hand: k, v of 197 rows; q once; scores, a v, o; ffn; head."""
    case = Case(memories=1, queries=1, spec=DecoderSpec(width=64, layers=1, heads=4, ffn=96, head="linear"))
    by_hand = 197 * 64 * 128 * 2 + 64 * 64 * 2 + 2 * (2 * 197 * 64) + 64 * 64 * 2 + 2 * (2 * 64 * 96) + 2 * 64
    assert forward_flops(case) == by_hand


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_every_contender_computes_the_same(mode: str) -> None:
    """Texts: the published module sees 98 padded rows, the op sees them collapsed."""
    case = Case(kind="texts", mode=mode, memories=3, queries=5, spec=SMALL)
    functions = contenders(case, ["reference", "torch"])
    if mode == "forward":
        truth = functions["published"]()
        for name, function in functions.items():
            torch.testing.assert_close(function(), truth, rtol=1e-4, atol=1e-5, msg=name)
    else:
        # torch's own masks differ from ours, which are the same in every backend
        torch.testing.assert_close(functions["torch"](), functions["reference"](), rtol=1e-4, atol=1e-5)
        pairs = zip(functions["torch"].leaves, functions["reference"].leaves)
        assert all(torch.equal(a, b) for a, b in pairs)
        gradients = [leaf.grad.clone() for leaf in functions["torch"].leaves]
        functions["reference"]()
        for ours, truth in zip(gradients, [leaf.grad for leaf in functions["reference"].leaves]):
            assert torch.linalg.norm(ours - truth) <= 1e-4 * torch.linalg.norm(truth)


def test_text_inputs_stand_for_98_rows() -> None:
    inputs = make_inputs(Case(kind="texts", spec=SMALL))
    assert inputs.row_count.sum(1).tolist() == [98] * 16
    assert inputs.collapsed.shape[1] <= 31


def test_turns_are_interleaved_and_the_first_is_not_counted() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    timings, rates = take_turns(functions, GemmRate(torch.float32), rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(t.seconds) for t in timings.values()] == [2, 2]
    assert len(rates) == 2
    assert min(rates) > 0


def test_median_and_spread() -> None:
    timing = Timing((1.0, 2.0, 4.0))
    assert (timing.median, timing.spread) == (2.0, 1.5)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_sees_what_the_published_module_materialises() -> None:
    """The feed-forward activations, kept for the backward, are known bytes; a few copies of them are all it keeps."""
    wide = DecoderSpec(width=32, layers=2, heads=2, ffn=2048, head="linear")
    case = Case(mode="forward+backward", memories=16, queries=64, spec=wide)
    hidden = 16 * 64 * wide.ffn * 4 * wide.layers
    assert 2 * hidden < peak_extra_bytes(case, "published") < 12 * hidden


def test_command_prints_json_of_every_case(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = [Case(memories=2, queries=3, spec=SMALL), Case(kind="texts", memories=2, queries=3, spec=SMALL)]
    monkeypatch.setattr("carzero.bench.command.cases", lambda quick: small)
    assert main(["bench", "--quick", "--json", "--rounds", "1", "--no-memory"]) == 0
    results = json.loads(capsys.readouterr().out)["cases"]
    assert [r["case"]["kind"] for r in results] == ["images", "texts"]
    for result in results:
        assert result["rows"]["published"]["times_faster"] == 1.0
        assert "torch" in result["rows"]
        row = result["rows"]["torch"]
        share = result["flops"] / row["median"] / result["gemm_flops_per_s"]
        assert row["share_of_gemm_rate"] == pytest.approx(share)


def test_no_speed_on_a_red_gate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from carzero.gate import Gate, Result

    red = Gate((Result("cpp", "float32", "logits", 0.5, 1e-5),))
    monkeypatch.setattr("carzero.bench.command.check", lambda: red)
    assert main(["bench", "--quick"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "gate is red" in output.err


def test_wrong_rounds_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rounds", "0"]) == 2
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
