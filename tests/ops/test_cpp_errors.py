"""Wrong calls of the extension's own operators end in a sentence, never in a wrong read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import LINEAR, SPEC

from carzero.ops import DecoderWeights


@pytest.fixture(autouse=True)
def _cpp(need) -> None:
    need("cpp")


def arguments(**changed: Any) -> list:
    values = {
        "memory": torch.zeros(2, 5, 64), "projected": False, "queries": torch.zeros(3, 64), "row_count": None,
        "pairs": None, "params": DecoderWeights.random(SPEC).flat(), "packed": None, "heads": 4, "eps": 1e-5,
        "dropout_p": 0.0, "seed": 0, "direction": 0, "memory_offset": 0, "query_offset": 0, "tile_pairs": 0,
        "simr": False,
    }  # fmt: skip
    assert changed.keys() <= values.keys()
    return list({**values, **changed}.values())


def blob(params: list[torch.Tensor]) -> torch.Tensor:
    return torch.ops.carzero_native.pack_weights(params, 4, torch.float32)


LINEAR_BLOB = "linear"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"memory": torch.zeros(2, 5, 64, dtype=torch.float64)}, "memory must be float32, bfloat16 or float16.*Double"),
        (
            {"memory": torch.zeros(2, 5, 64).bfloat16()},
            "memory and queries must have one dtype, got BFloat16 and Float",
        ),
        ({"memory": torch.zeros(2, 5, 48)}, r"memory must be \[M, P, 64\], got \[2, 5, 48\]"),
        ({"memory": torch.zeros(5, 2, 64).transpose(0, 1)}, "memory must be contiguous, got strides"),
        ({"queries": torch.zeros(3, 32)}, r"queries must be \[Q, 64\], got \[3, 32\]"),
        ({"heads": 3}, "head width that is a multiple of 16, got width 64 over 3 heads"),
        ({"heads": 8}, "head width that is a multiple of 16, got width 64 over 8 heads"),
        ({"row_count": torch.ones(2, 5)}, "row_count must be a contiguous int32 CPU tensor, got Float"),
        ({"row_count": torch.ones(2, 4, dtype=torch.int32)}, r"row_count must have shape \[2, 5\], got \[2, 4\]"),
        (
            {"pairs": torch.tensor([[0, 1], [2, 0]])},
            r"pairs\[1\] must lie within 2 memories and 3 queries, got \(2, 0\)",
        ),
        ({"pairs": torch.tensor([[0, -1]])}, r"pairs\[0\] must lie within"),
        ({"pairs": torch.tensor([[0, 1]], dtype=torch.int32)}, r"pairs must be a contiguous int64 CPU tensor \[N, 2\]"),
        ({"params": DecoderWeights.random(SPEC).flat()[:-1]}, "0, 2 or 8 of the head, got 33"),
        ({"params": DecoderWeights.random(SPEC).flat()[:26]}, "logits need a head"),
        ({"projected": True}, r"projected memory must be \[M, P, L, 2, D\], got \[2, 5, 64\]"),
        ({"dropout_p": 1.0}, r"dropout_p must lie in \[0, 1\), got 1"),
        ({"direction": 2}, "direction must be 0 or 1, got 2"),
        ({"tile_pairs": -1}, r"tile_pairs must be at least 0 \(automatic\), got -1"),
        ({"packed": torch.zeros(4096, dtype=torch.uint8)}, "not a blob of carzero_native::pack_weights"),
        ({"packed": torch.zeros(8)}, "packed must be a contiguous uint8 CPU tensor, got Float"),
        ({"packed": LINEAR_BLOB}, "packed from parameters of other shapes"),
    ],
)
def test_sentences(changed: dict, sentence: str) -> None:
    if changed.get("packed") is LINEAR_BLOB:
        changed = {"packed": blob(DecoderWeights.random(LINEAR).flat())}
    with pytest.raises(RuntimeError, match=f"carzero_native::pair_forward: .*{sentence}"):
        torch.ops.carzero_native.pair_forward(*arguments(**changed))


def test_a_wrong_parameter_is_named() -> None:
    params = DecoderWeights.random(SPEC).flat()
    params[2 + 12 + 4] = torch.zeros(95, 64)
    with pytest.raises(RuntimeError, match=r"parameter 4 of layer 1 must have shape \[96, 64\], got \[95, 64\]"):
        torch.ops.carzero_native.pair_forward(*arguments(params=params))


def test_a_shortened_blob_is_refused() -> None:
    packed = blob(DecoderWeights.random(SPEC).flat())
    with pytest.raises(RuntimeError, match="cut short"):
        torch.ops.carzero_native.pair_forward(*arguments(packed=packed[:-64].clone()))


def test_backward_wants_its_own_shapes() -> None:
    backward = torch.ops.carzero_native.pair_backward
    with pytest.raises(RuntimeError, match=r"pair_backward: the gradient must have shape \[2, 3\], got \[3, 2\]"):
        backward(torch.zeros(3, 2), *arguments())
    with pytest.raises(RuntimeError, match="a projected memory has no gradient"):
        backward(torch.zeros(2, 3), *arguments(memory=torch.zeros(2, 5, 2, 2, 64), projected=True))


def test_maps_must_have_room_for_the_original_rows() -> None:
    count = torch.ones(2, 5, dtype=torch.int32)
    count[1, 4] = 9
    first = arguments(row_count=count)[:9]
    with pytest.raises(RuntimeError, match="row 4 stands for 9 rows, which must end within original_rows = 12"):
        torch.ops.carzero_native.pair_attention(*first, 0, 12)
    assert torch.ops.carzero_native.pair_attention(*first, 0, 13).shape == (2, 2, 3, 13)
