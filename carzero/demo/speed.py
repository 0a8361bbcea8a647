"""How fast the op is here against its written-out form, both in one process, turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from carzero.ops import pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights


def compare_backends(
    backends: tuple[str, ...],
    *,
    memories: int,
    queries: int,
    rows: int,
    spec: DecoderSpec | None = None,
    rounds: int = 5,
) -> dict[str, dict[str, float]]:
    """Median seconds of `pair_logits` by backend, forward alone and with the backward, float32 without dropout.

    The backends take turns within each round, so that a load on the machine slows all of them alike.

    Args:
        memories, queries, rows: M, Q and P.
        spec: the decoder; CARZero's published one if None.

    Returns:
        ``{backend: {"forward": s, "forward_backward": s}}``.
    """
    spec = spec or DecoderSpec()
    generator = torch.Generator().manual_seed(0)
    weights = DecoderWeights.random(spec).map(lambda t: t.requires_grad_())
    memory = torch.randn(memories, rows, spec.width, generator=generator)
    query = torch.randn(queries, spec.width, generator=generator)
    times: dict[str, dict[str, list[float]]] = {b: {"forward": [], "forward_backward": []} for b in backends}

    def forward(backend: str) -> None:
        with torch.no_grad():
            pair_logits(memory, query, weights, backend=backend)

    def forward_backward(backend: str) -> None:
        m, q = memory.clone().requires_grad_(), query.clone().requires_grad_()
        pair_logits(m, q, weights, backend=backend).sum().backward()

    runs: dict[str, Callable[[str], None]] = {"forward": forward, "forward_backward": forward_backward}
    for turn in range(rounds + 1):
        for backend in backends:
            for name, run in runs.items():
                start = time.perf_counter()
                run(backend)
                # the first turn allocates and is not counted
                if turn:
                    times[backend][name].append(time.perf_counter() - start)
    return {b: {name: statistics.median(seconds) for name, seconds in t.items()} for b, t in times.items()}
