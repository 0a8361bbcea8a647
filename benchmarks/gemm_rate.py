"""Rate of the native matrix product beside torch's own F.linear, interleaved in one process on one thread.

    OMP_NUM_THREADS=1 python benchmarks/gemm_rate.py

G is torch's best float32 rate at 4096 x 768 x 768, measured in the same rounds as ours; the table gives each shape's
share of it. Weights are packed beforehand, as the op does. Times are processor times of the one thread, so that a busy
machine disturbs only through its caches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from carzero import _C

# rows, K, N: projections and feed-forward of one tile, scores and values of one memory and head
SHAPES = [
    (128, 768, 768),
    (256, 768, 768),
    (512, 768, 768),
    (128, 768, 1024),
    (128, 1024, 768),
    (512, 768, 6144),
    (32, 768, 768),
    (128, 192, 197),
    (128, 197, 192),
    (128, 192, 20),
    (128, 768, 80),
]


def torch_rate(x: torch.Tensor, w: torch.Tensor, calls: int) -> float:
    """Best of `calls` F.linear calls, GFLOP/s."""
    best = float("inf")
    for _ in range(calls):
        start = time.thread_time()
        F.linear(x, w)
        best = min(best, time.thread_time() - start)
    return 2 * x.shape[0] * w.shape[0] * w.shape[1] / best / 1e9


class Ours:
    """One shape of the native product with its operands."""

    def __init__(self, rows: int, K: int, N: int, operand: str, isa: str | None) -> None:
        self.shape, self.operand, self.isa = (rows, K, N), operand, isa
        rng = np.random.default_rng(0)
        w = rng.standard_normal((N, K), dtype=np.float32)
        a = rng.standard_normal((rows, K), dtype=np.float32)
        self.a = a if operand == "f32" else _C.float_to_bf16(a, isa).reshape(rows, K)
        self.packed = aligned(_C.packed_bytes(K, N, operand))
        _C.pack_b(w.T, "f32", operand, self.packed, 0, N, isa)
        self.c = np.empty((rows, N), np.float32)

    def rate(self, calls: int) -> float:
        rows, K, N = self.shape
        seconds = _C.gemm(self.a, self.packed, N, self.operand, self.c, False, 0, N, self.isa, calls)
        return 2 * rows * K * N / min(seconds) / 1e9


def aligned(count: int) -> np.ndarray:
    """uint8 buffer whose address is a multiple of 64."""
    raw = np.zeros(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--isa", default=None, help="instruction set, default: the selected one")
    parser.add_argument("--operand", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.float32 if args.operand == "f32" else torch.bfloat16
    x, w = torch.randn(4096, 768, dtype=dtype), torch.randn(768, 768, dtype=dtype)
    ours = [Ours(*shape, args.operand, args.isa) for shape in SHAPES]
    torch_rates: list[float] = []
    rates: list[list[float]] = [[] for _ in ours]
    for _ in range(args.rounds):
        torch_rates.append(torch_rate(x, w, 2))
        for i, case in enumerate(ours):
            rates[i].append(case.rate(6))
    g = max(torch_rates)
    print(f"instruction set: {args.isa or _C.selected_isa()[0]}, operands: {args.operand}, one thread")
    print(f"G = torch {torch.__version__} F.linear 4096x768x768: best {g:.1f} GFLOP/s, rounds "
          + " ".join(f"{r:.1f}" for r in torch_rates))  # fmt: skip
    print(f"{'rows x K x N':>16} {'median':>8} {'best':>8}  GFLOP/s   {'best / G':>8} {'median of round ratios':>24}")
    for case, r in zip(ours, rates, strict=True):
        ratio = statistics.median(a / b for a, b in zip(r, torch_rates, strict=True))
        name = " x ".join(map(str, case.shape))
        print(f"{name:>16} {statistics.median(r):8.1f} {max(r):8.1f}            {max(r) / g:8.2f} {ratio:24.2f}")


if __name__ == "__main__":
    main()
