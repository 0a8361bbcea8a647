"""Zero-shot throughput: 192 prompts on thousands of images, against the published loop of one image at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carzero.bench.published import PublishedDecoder
from carzero.ops import pack_weights, pair_logits, project_memory
from carzero.ops.spec import DecoderSpec, DecoderWeights
from carzero.zeroshot.graphs import GraphedBatches

from .encoders import Encoders
from .op import TOY, own_backends
from .suite import Suite
from .timing import take_turns


def run(suite: Suite) -> None:
    images, prompts = (8, 6) if suite.dry else (4096, 192)
    for backend in own_backends(suite):
        suite.row(
            f"{prompts} prompts x {images} images, {backend}",
            lambda backend=backend: measure(suite, images, prompts, backend),
            seconds=150,
        )


@torch.no_grad()
def measure(suite: Suite, images: int, prompts: int, backend: str) -> dict[str, Any]:
    """Seconds an image, pixels on the device: batches of 64, launched one by one and from a CUDA graph."""
    spec = TOY if suite.dry else DecoderSpec()
    torch.manual_seed(0)
    device, size = suite.device, 4 if suite.dry else 64
    encoders = Encoders(suite.dry).to(device).eval()
    weights = DecoderWeights.random(spec, device=device)
    published = PublishedDecoder(weights, 0.0).to(device).eval()
    pixels, _ = encoders.batch(size, device)
    _, ids = encoders.batch(prompts, device)
    words = 8 if suite.dry else 97
    with torch.autocast(device.type, torch.bfloat16):
        texts = encoders.texts(ids).last_hidden_state
        texts = torch.cat((texts.mean(1, keepdim=True), texts[:, :words]), 1)
    # prompts of six words: two special rows, and all padding as one
    texts[:, 9:] = 0
    count = torch.ones(prompts, min(10, texts.shape[1]), dtype=torch.int32, device=device)
    count[:, -1] = texts.shape[1] - count.shape[1] + 1
    packed = pack_weights(weights, torch.bfloat16)

    with torch.autocast(device.type, torch.bfloat16):
        bank = project_memory(texts[:, : count.shape[1]], packed, row_count=count)

    def score(batch: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            tokens = encoders.images(batch).last_hidden_state
            a = pair_logits(tokens, texts[:, 0].to(tokens.dtype), packed, backend=backend)
            return (a + pair_logits(bank, tokens[:, 0], packed, backend=backend).T) / 2

    def loop() -> Tensor:
        # the published code under autocast: one image, both directions, all prompts' keys and values again
        with torch.autocast(device.type, torch.bfloat16):
            tokens = encoders.images(pixels[:1]).last_hidden_state
            return (published(tokens, texts[:, 0]) + published(texts, tokens[:, 0]).T) / 2

    batches = max(1, images // size)
    runs = {"published, one image": loop, "ours, one batch": lambda: score(pixels)}
    expected, got = loop()[0].float(), score(pixels)[0].float()
    error = float((got - expected).norm() / expected.norm())
    if device.type == "cuda":
        graphed = GraphedBatches(score, size)
        if not torch.allclose(graphed(pixels).float(), score(pixels).float(), rtol=1e-2, atol=1e-3):
            raise RuntimeError("the graph's scores differ from those of single launches")
        runs["ours, one batch, CUDA graph"] = lambda: graphed(pixels)
        runs["all batches, CUDA graph"] = lambda: [graphed(pixels) for _ in range(batches)]
    times = take_turns(runs, device, rounds=suite.rounds())
    per_image = {name: t["seconds"] / (1 if "one image" in name else size) for name, t in times.items()}
    if "all batches, CUDA graph" in per_image:
        per_image["all batches, CUDA graph"] /= batches
    base = per_image["published, one image"]
    return {
        "relative_difference": error,
        **{n: {"seconds_per_image": s, "times_faster": base / s, "images_per_s": 1 / s} for n, s in per_image.items()},
    }
