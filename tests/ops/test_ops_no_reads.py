"""The torch backend off the CPU asks its device for no value: a read stalls a GPU's queue and ends a graph's capture.

On the meta device: tensors there have shapes and no values, so that a read of one (`item`, `nonzero`, a mask as index)
raises, and code takes the path of every device that is not a CPU.
"""

from __future__ import annotations

import pytest
import torch

from carzero.ops import tiled, tiled_backward
from carzero.ops.call import Options, Params
from carzero.ops.spec import DecoderSpec, DecoderWeights
from carzero.ops.tape import TapeSize

META = torch.device("meta")


def run(dropout: float, collapsed: bool, recompute: str, head: str, original_rows: int) -> None:
    spec = DecoderSpec(width=64, layers=2, ffn=96, head=head, head_hidden=(32, 16, 16))  # type: ignore[arg-type]
    weights = DecoderWeights.from_flat(spec, [torch.empty(s, device=META) for s in spec.parameter_shapes()])
    params = Params.of(weights)
    memory = torch.empty(3, 9, 64, device=META, dtype=torch.bfloat16)
    queries = torch.empty(5, 64, device=META, dtype=torch.bfloat16)
    options = Options(
        row_count=torch.empty(3, 9, dtype=torch.int32, device=META) if collapsed else None,
        dropout_p=dropout,
        seed=torch.empty(1, dtype=torch.int64, device=META) if dropout else None,
        original_rows=original_rows,
    )
    size = TapeSize(spec.layers, 15, 64, 96, torch.bfloat16, META, dropout > 0)
    tape = size.views(torch.empty(size.bytes(recompute), dtype=torch.uint8, device=META), recompute)
    out = tiled.pair_forward(memory, queries, params, options, tape)
    assert (out.shape, out.dtype, out.device) == ((15,), torch.float32, META)
    gradients = tiled_backward.pair_backward(out, memory, queries, params, options, tape)
    for got, given in zip(gradients, [memory, queries, *params.flat()], strict=True):
        assert (got.shape, got.dtype, got.device) == (given.shape, given.dtype, given.device)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("recompute", ["full", "layer", "none"])
@pytest.mark.parametrize(("dropout", "collapsed"), [(0.0, False), (0.0, True), (0.1, False), (0.1, True)])
def test_forward_and_backward(dropout: float, collapsed: bool, recompute: str, head: str) -> None:
    run(dropout, collapsed, recompute, head, original_rows=98 if collapsed else 0)


def test_a_read_is_noticed() -> None:
    # without P0 the rows that are dropped out have to be learnt from the device
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run(0.1, True, "full", "mlp", original_rows=0)
