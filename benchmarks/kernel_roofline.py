"""The Triton backend's kernels of one layer: operations, bytes of device memory, and the least time for both.

Usage::

    python benchmarks/kernel_roofline.py                          # one layer, 256 x 256 pairs, P = 197, H200
    python benchmarks/kernel_roofline.py --record RECORD.json     # beside what a record of the GPU suite measured

Bytes are what a kernel must read and write once if nothing of it is in cache; 16-bit operands, float32 residual
stream. The least time is the larger of operations by the GEMM rate and bytes by the bandwidth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

#: Default ceilings: cuBLAS at [65536, 1024] x [1024, 1024] on H100, https://github.com/facebookexperimental/triton/pull/1038,
#: and the bandwidth that copies reach on H200. Both are other people's figures until the suite has measured ours.
RATE, BANDWIDTH = 584e12, 4.3e12


class Sizes(NamedTuple):
    """The letters of docs/conventions.md."""

    M: int = 256
    Q: int = 256
    P: int = 197
    D: int = 768
    F: int = 1024


class Kernel(NamedTuple):
    """One launch for all pairs; operations and bytes are of one pair.

    Args:
        key: role, K, N and dropout of the suite's row, or None where it has no row of its own.
        apart: bytes more where the epilogue is a pass of its own over the product.
    """

    name: str
    flops: float
    bytes: float
    apart: float
    key: tuple[str, int, int, bool] | None = None


def kernels(s: Sizes) -> list[Kernel]:
    """A layer from the second on, forward then backward, with dropout."""
    d, f = s.D, s.F
    # keys and values, shared by all queries of a memory
    kv = 4 * s.P * d / s.Q
    state = 10 * d
    return [
        Kernel("q = LN(t) Wq", 2 * d * d, 4 * d, 4 * d, ("norm", d, d, False)),
        Kernel("attention", 4 * s.P * d, 4 * d + kv, 0),
        Kernel("t += drop(o Wo)", 2 * d * d, 2 * d + state, 4 * d, ("branch", d, d, True)),
        Kernel("h = drop(relu(LN(t) W1))", 2 * d * f, 2 * d + 2 * f, 4 * f, ("norm", d, f, True)),
        Kernel("t += drop(h W2)", 2 * d * f, 2 * f + state, 4 * d, ("branch", f, d, True)),
        Kernel("dW2 += g' h", 2 * d * f, 2 * d + 2 * f, 0, ("outer", d, f, False)),
        Kernel("dh = gate(g W2')", 2 * d * f, 2 * d + 4 * f, 4 * f, ("pull_gated", d, f, False)),
        Kernel("dy = dh W1'", 2 * d * f, 2 * d + 2 * f, 0, ("pull", f, d, False)),
        Kernel("LN backward, dt, y, g", 0, 2 * d + 4 * d + 8 * d + 4 * d, 0),
        Kernel("dW1 += dh' y", 2 * d * f, 2 * d + 2 * f, 0, ("outer", f, d, False)),
        Kernel("dWo += g' o", 2 * d * d, 4 * d, 0, ("outer", d, d, False)),
        Kernel("do = g Wo'", 2 * d * d, 4 * d, 0, ("pull", d, d, False)),
        Kernel("attention backward", 10 * s.P * d, 8 * d + 5 * kv, 0),
        Kernel("dx = dq Wq'", 2 * d * d, 4 * d, 0, ("pull", d, d, False)),
        Kernel("LN backward, dt, x, g", 0, 2 * d + 4 * d + 8 * d + 4 * d, 0),
        Kernel("dWq += dq' x", 2 * d * d, 4 * d, 0, ("outer", d, d, False)),
    ]


def measured(kernel: Kernel, record: dict[str, Any] | None, pairs: int) -> float | None:
    """Seconds of the fastest of the record's contenders, for so many pairs; None where there is no such row."""
    rows = {} if record is None else record["stages"].get("kernels", {}).get("rows", {})
    for row in rows.values():
        if kernel.key is not None and (row.get("role"), row.get("k"), row.get("n"), row.get("dropout")) == kernel.key:
            times = [c["seconds"] for c in row["contenders"].values() if c.get("choice")]
            done = int(row["shape"].split()[0].removeprefix("R="))
            return min(times) * pairs / done if times else None
    return None


def table(s: Sizes, rate: float, bandwidth: float, record: dict[str, Any] | None = None) -> str:
    """Markdown."""
    pairs = s.M * s.Q
    lines = [
        "| kernel | GFLOP | MiB | FLOP a byte | by rate, us | by bandwidth, us | MiB more if the epilogue is apart "
        "| measured, us |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    total = [0.0] * 4
    for k in kernels(s):
        flops, size, apart = (pairs * x for x in (k.flops, k.bytes, k.apart))
        seconds = measured(k, record, pairs)
        lines.append(
            f"| `{k.name}` | {flops / 1e9:.1f} | {size / 2**20:.0f} | {flops / size:.0f} | {1e6 * flops / rate:.0f} "
            f"| {1e6 * size / bandwidth:.0f} | {apart / 2**20:.0f} "
            f"| {'' if seconds is None else f'{1e6 * seconds:.0f}'} |"
        )
        least = max(flops / rate, size / bandwidth)
        total = [a + b for a, b in zip(total, (flops, size, apart, least))]
    flops, size, apart, least = total
    lines.append(
        f"| a layer | {flops / 1e9:.0f} | {size / 2**20:.0f} | {flops / size:.0f} | {1e6 * flops / rate:.0f} "
        f"| {1e6 * size / bandwidth:.0f} | {apart / 2**20:.0f} | |"
    )
    lines += ["", f"The larger of both, summed: {1e6 * least:.0f} us, {flops / least / 1e12:.0f} TFLOP/s."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for letter, size in Sizes()._asdict().items():
        parser.add_argument(f"--{letter}", type=int, default=size)
    parser.add_argument("--rate", type=float, default=RATE, help="FLOP/s that GEMMs reach")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="bytes/s")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    record = json.loads(args.record.read_text(encoding="utf-8")) if args.record else None
    print(table(Sizes(*(getattr(args, letter) for letter in Sizes._fields)), args.rate, args.bandwidth, record))


if __name__ == "__main__":
    main()
