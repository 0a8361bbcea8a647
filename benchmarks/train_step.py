"""A training step with the op, with the published decoder, and with a cosine head, in one process, taking turns.

    python benchmarks/train_step.py [--batch 64] [--rounds 3] [--dtype bfloat16] [--encode 8]

A step is the encoders' forward and backward, measured once for all, and a head's on their features: memories of 197
image rows and of the collapsed rows of short texts, both directions, loss, dropout 0.1. Encoders are measured on a part
of the batch, whose time counts as often as the batch holds it; --encode 0 leaves them out. With one thread, seconds are
of processor time, which other processes of the machine hardly change. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from carzero.bench.published import PublishedDecoder
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.encoded import Encoded
from carzero.models.tokenizer import word_tokenizer
from carzero.train.loss import contrastive_loss

TEXT = "there is a small left pleural effusion"


def features(model: CARZero, batch: int) -> tuple[Encoded, Encoded]:
    """Leaves of the shapes that the encoders give."""
    with torch.no_grad():
        texts = model.encode_texts([TEXT])
    assert texts.row_count is not None
    width, rows = texts.query.shape[1], texts.memory.shape[1]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).requires_grad_()

    count = texts.row_count.expand(batch, -1).contiguous()
    return Encoded(draw(batch, 197, width), draw(batch, width)), Encoded(
        draw(batch, rows, width), draw(batch, width), count
    )


def seconds(act: Callable[[], None]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    act()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encode", type=int, default=8, help="images that the encoders take at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    tokenizer = word_tokenizer([TEXT])
    config = CARZeroConfig.carzero(vocab_size=len(tokenizer))
    if not args.encode:
        config = replace(config, image=replace(config.image, depth=1), text=replace(config.text, depth=3))
    model = CARZero(config, tokenizer).train()
    images, texts = features(model, args.batch)
    published = PublishedDecoder(model.decoder.weights(), dropout=0.1).train()  # type: ignore[union-attr]
    # the published model attends every zero row: 98 of them
    padded = torch.zeros(args.batch, 98, images.query.shape[1])

    def encoders() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            a = model.encode_images(torch.randn(args.encode, 3, 224, 224))
            b = model.encode_texts([TEXT] * args.encode)
        (a.memory.float().sum() + b.memory.float().sum()).backward()

    def head(logits: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        def act() -> None:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = contrastive_loss(*logits())
            loss.backward()

        return act

    def cosine() -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (torch.nn.functional.normalize(e.query, dim=-1) for e in (images, texts))
        return 14.0 * a @ b.T, 14.0 * a @ b.T

    heads = {
        "cosine": head(cosine),
        "op": head(lambda: model.logits(images, texts, seed=1)),
        "published": head(lambda: (published(images.memory, texts.query), published(padded, images.query).T)),
    }
    acts = {"encoders": encoders, **heads} if args.encode else heads
    for act in acts.values():
        act()
    found: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(args.rounds):
        for name, act in acts.items():
            found[name].append(seconds(act))
            print(f"{name}: {found[name][-1]:.3f} s", file=sys.stderr)
    median = {name: statistics.median(values) for name, values in found.items()}
    once = median["encoders"] * args.batch / args.encode if args.encode else float("nan")
    print("| head | head s | step s | head's share of the step |\n|---|---:|---:|---:|")
    for name in heads:
        step = once + median[name]
        print(f"| {name} | {median[name]:.3f} | {step:.3f} | {median[name] / step:.1%} |")
    ratio = (median["op"] - median["cosine"]) / (median["published"] - median["cosine"])
    spread = max(
        (max(values) - min(values)) / statistics.median(values) for values in found.values() if min(values) > 0.1
    )
    print(f"\n(op - cosine) / (published - cosine): {ratio:.3f}; batch {args.batch}, {args.dtype}, dropout 0.1, "
          f"{torch.get_num_threads()} threads, median of {args.rounds}, spread {spread:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
