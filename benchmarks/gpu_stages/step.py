"""A training step with the published encoders: the op's share, beside the published decoder and a cosine head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from carzero.bench.published import PublishedDecoder
from carzero.ops import pair_logits
from carzero.ops.spec import DecoderSpec, DecoderWeights

from .encoders import Encoders
from .op import TOY, own_backends
from .suite import Suite
from .timing import peak_bytes, take_turns

#: Image-text pairs a step; the published decoder fits up to 256.
BATCHES = (64, 128, 256, 512)
PUBLISHED_UP_TO = 256


def run(suite: Suite) -> None:
    for batch in (4,) if suite.dry else BATCHES:
        suite.row(f"training step, batch {batch}", lambda batch=batch: measure(suite, batch), seconds=90)


def measure(suite: Suite, batch: int) -> dict[str, Any]:
    """Forward and backward of both encoders and the head, both directions, dropout 0.1, bfloat16 autocast."""
    spec = TOY if suite.dry else DecoderSpec()
    torch.manual_seed(0)
    encoders = Encoders(suite.dry).to(suite.device).train()
    weights = DecoderWeights.random(spec, device=suite.device).map(lambda t: t.requires_grad_())
    published = PublishedDecoder(weights, 0.1).to(suite.device).train()
    pixels, ids = encoders.batch(batch, suite.device)
    real = torch.randint(4, 31 if not suite.dry else 8, (batch,), generator=torch.Generator().manual_seed(1))
    count = _row_count(real, encoders.tokens, suite.device)
    targets = torch.arange(batch, device=suite.device)

    def loss(logits: Tensor) -> Tensor:
        return (F.cross_entropy(logits.float(), targets) + F.cross_entropy(logits.float().T, targets)) / 2

    def cosine(images: Tensor, texts: Tensor) -> Tensor:
        return loss(F.normalize(images[:, 0], dim=-1) @ F.normalize(texts[:, 0], dim=-1).T * 10)

    def decoder(images: Tensor, texts: Tensor) -> Tensor:
        return loss(published(images, texts[:, 0])) + loss(published(texts, images[:, 0]))

    def op(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        def both(images: Tensor, texts: Tensor) -> Tensor:
            collapsed = texts[:, : count.shape[1]].masked_fill((count > 1).unsqueeze(-1), 0.0)
            options: dict[str, Any] = {"dropout_p": 0.1, "seed": 1, "backend": backend}
            a = pair_logits(images, texts[:, 0], weights, **options)
            b = pair_logits(
                collapsed, images[:, 0], weights, row_count=count, direction=1, original_rows=1 + encoders.tokens,
                **options,
            )  # fmt: skip
            return loss(a) + loss(b)

        return both

    heads = {"cosine": cosine, **{name: op(name) for name in own_backends(suite)}}
    if batch <= PUBLISHED_UP_TO:
        heads["published"] = decoder
    parameters = [*encoders.parameters(), *weights.flat(), *published.parameters()]

    def step(head: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for parameter in parameters:
                parameter.grad = None
            with torch.autocast(suite.device.type, torch.bfloat16):
                value = head(*encoders(pixels, ids))
            value.backward()

        return run

    steps = {name: step(head) for name, head in heads.items()}
    times = take_turns(steps, suite.device, rounds=suite.rounds())
    base = times["cosine"]["seconds"]
    return {
        name: {
            **time,
            "share_beyond_encoders": 1 - base / time["seconds"],
            "pairs_per_s": 2 * batch * batch / time["seconds"],
            "peak_bytes": peak_bytes(steps[name], suite.device),
        }
        for name, time in times.items()
    }


def _row_count(real: Tensor, tokens: int, device: torch.device) -> Tensor:
    """int32 ``[B, P]``: the global row, the real ones, then all padding as one."""
    column = torch.arange(int(real.max()) + 2)
    inside = column < 1 + real.unsqueeze(1)
    pad = (tokens - real).unsqueeze(1) * (column == 1 + real.unsqueeze(1))
    return (inside + pad).to(torch.int32).to(device)
