"""The tables of docs/scaling.md, from the cost model that tests hold against real steps.

python benchmarks/scaling.py
"""

from __future__ import annotations

from carzero.train.cost import StepCost, published_decoder_bytes

#: (GPUs, images of the whole batch, images encoded at a time, sharding)
RUNS = (
    (1, 256, 64, "none"),
    (1, 4096, 64, "none"),
    (8, 4096, 64, "none"),
    (64, 16384, 128, "none"),
    (64, 65536, 128, "none"),
    (1024, 65536, None, "none"),
    (1024, 65536, None, "fsdp2"),
)
#: What an H100 SXM does on the GEMMs of this model, and what a link of 400 Gbit/s a GPU carries: assumptions.
RATE, LINK = 300e12, 50e9


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def steps() -> str:
    """Operations, bytes, memory and seconds of a step at each of `RUNS`."""
    rows = []
    for world, batch, micro, sharding in RUNS:
        cost = StepCost(batch, world, micro_batch=micro, sharding=sharding)
        flops, wire, memory = cost.flops(), cost.wire_bytes(), cost.memory_bytes()
        total = sum(flops.values())
        vectors = wire["global vectors"] + wire["their gradients"] + wire["columns"]
        rows.append(
            (
                world, f"{batch:,}", micro or "all", sharding, f"{total / 1e12:,.0f}",
                f"{flops['decoder'] / total:.0%}", f"{vectors / 1e6:,.1f}", f"{wire['weights'] / 1e6:,.0f}",
                f"{sum(memory.values()) / 2**30:.1f}", f"{memory['logits'] / 2**30:.2f}",
                f"{total / RATE:.2f}", f"{cost.moved_bytes() / LINK:.3f}",
            )
        )  # fmt: skip
    head = (
        "GPUs", "batch", "at a time", "weights", "TFLOP a GPU", "decoder", "vectors MB", "weights MB", "memory GiB",
        "of it logits", "compute s", "wire s",
    )  # fmt: skip
    return table(head, rows)


def op_share() -> str:
    """What the op adds to the peak, and what the published decoder would."""
    rows = []
    for batch in (64, 256, 1024, 4096):
        cost = StepCost(batch)
        peak, extra = sum(cost.memory_bytes().values()), cost.op_extra_bytes()
        published = published_decoder_bytes(batch, batch, 197) + published_decoder_bytes(batch, batch, 98)
        rows.append(
            (
                f"{batch:,}",
                f"{peak / 2**30:.1f}",
                f"{extra / 2**30:.2f}",
                f"{extra / peak:.1%}",
                f"{published / 2**30:,.0f}",
            )
        )
    return table(("batch", "peak GiB", "op GiB", "share", "published decoder GiB"), rows)


if __name__ == "__main__":
    print(f"{steps()}\n\n{op_share()}")
