"""Every tolerance of the op's tests, with its reason. They are the same everywhere; none is looser in CI."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Bound(NamedTuple):
    """Largest relative L2 error (or, for `factor`, multiple of the comparator's error) and why."""

    value: float
    reason: str


#: Error against float64 truth, as a multiple of the published module's error at the same dtype under autocast.
FACTOR = {
    "forward": Bound(1.5, "no less accurate than what users run today, with room for another order of sums"),
    "gradient": Bound(2.0, "the backward runs the forward again and sums over pairs tile by tile"),
}

#: Added to the multiple: what rounding alone may do where the comparator is exact by luck.
FLOOR = {
    (torch.float32, "forward"): Bound(2e-6, "sums of 64-96 products: some 10 ulp of 1.2e-7"),
    (torch.float32, "gradient"): Bound(5e-6, "twice as many roundings; LayerNorm of near-zero rows amplifies them"),
    (torch.bfloat16, "forward"): Bound(4e-3, "one ulp, 2^-8: results are bfloat16"),
    (torch.bfloat16, "gradient"): Bound(8e-3, "two ulp: gradients of memory and queries are bfloat16"),
    (torch.float16, "forward"): Bound(5e-4, "half an ulp, 2^-11: results are float16"),
    (torch.float16, "gradient"): Bound(1e-3, "one ulp: gradients of memory and queries are float16"),
}

#: Two runs of ours that equal each other on paper: another tiling, list, order, projection or packing; or dropout,
#: where the published module draws other masks. A wrong mask element is off by 1e-2 and more.
SAME = {
    (torch.float64, "forward"): Bound(1e-13, "order of sums; 2.2e-16 ulp"),
    (torch.float64, "gradient"): Bound(1e-12, "order of sums over pairs"),
    (torch.float32, "forward"): Bound(5e-6, "order of sums; some 10 ulp of 1.2e-7 on either side"),
    (torch.float32, "gradient"): Bound(2e-5, "order of sums over pairs, both sides rounded"),
    (torch.bfloat16, "forward"): Bound(2e-2, "8 bits of mantissa in every operand, on either side"),
    (torch.bfloat16, "gradient"): Bound(5e-2, "the same through the backward"),
    (torch.float16, "forward"): Bound(2e-3, "11 bits of mantissa in every operand, on either side"),
    (torch.float16, "gradient"): Bound(5e-3, "the same through the backward"),
}

#: Random shapes in float32 against float64. A result may be one number, a sum of terms a hundred times its size.
#: A wrong mask or index is off by 1e-1.
RANDOM = {
    "forward": Bound(2e-4, "1e-6 of the terms, where they cancel to a hundredth"),
    "gradient": Bound(1e-3, "the same, twice: sums over pairs of such sums"),
}

#: Collapsed against uncollapsed rows in float64, outputs and every gradient, with and without dropout.
COLLAPSE = Bound(1e-12, "exact identity; only log n and the order of sums round")

#: Attention maps sum to 1 over the original rows, float32.
MAP_SUM = Bound(1e-5, "softmax and a mean over heads in float32")
