"""What the op adds to a training step's peak memory: whole processes with it and with a cosine head, by batch.

    python benchmarks/train_memory.py [--batches 4,8,12] [--depth 12]

Each figure is the largest resident size of a fresh process that makes one float32 step (encoders at once, loss,
backward, dropout 0.1; no optimizer), less that of one that makes the model and no step. Beside it the byte model of
`carzero/train/cost.py`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys

import torch

from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.train.cost import IMAGE, TEXT, StepCost, Tower
from carzero.train.loss import contrastive_loss

SENTENCE = "there is a small left pleural effusion"


def model_of(depth: int) -> CARZero:
    tokenizer = word_tokenizer([SENTENCE])
    whole = CARZeroConfig.carzero(vocab_size=len(tokenizer))
    return CARZero(
        dataclasses.replace(
            whole,
            image=dataclasses.replace(whole.image, depth=depth),
            text=dataclasses.replace(whole.text, depth=depth),
        ),
        tokenizer,
    ).train()


def step(batch: int, depth: int, head: str) -> None:
    """One process's work; prints its peak in bytes."""
    torch.manual_seed(0)
    model = model_of(depth)
    if head != "none":
        images = model.encode_images(torch.randn(batch, 3, 224, 224))
        texts = model.encode_texts([SENTENCE] * batch)
        if head == "op":
            logits = model.logits(images, texts, seed=1)
        else:
            a, b = (torch.nn.functional.normalize(e.query, dim=-1) for e in (images, texts))
            logits = 14.0 * a @ b.T, 14.0 * a @ b.T
        contrastive_loss(*logits).backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measured(batch: int, depth: int, head: str) -> int:
    words = [sys.executable, __file__, "--one", head, "--batches", str(batch), "--depth", str(depth)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def modelled(batch: int, depth: int, model: CARZero) -> dict[str, int]:
    """By the byte model, without an optimizer and without the weights, which are there before."""

    def tower(published: Tower, part: torch.nn.Module, tokens: int) -> Tower:
        weights = sum(p.numel() for p in part.parameters())
        return dataclasses.replace(published, depth=depth, weights=weights, tokens=tokens)

    with torch.no_grad():
        texts = model.encode_texts([SENTENCE])
    pieces = len(model.tokenizer(SENTENCE)["input_ids"])  # type: ignore[misc]
    decoder = sum(p.numel() for p in model.decoder.parameters())
    cost = StepCost(
        batch, element=4, text_rows=texts.memory.shape[1], image=tower(IMAGE, model.image_encoder, 197),
        text=tower(TEXT, model.text_encoder, pieces), decoder_weights=decoder,
    )  # fmt: skip
    found = cost.memory_bytes()
    # a gradient each, of the encoders' weights: the decoder's are counted with the op
    encoders = cost.image.weights + cost.text.weights
    return {**found, "weights, gradients, optimizer": 4 * encoders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="4,8,12", help="images of a step, by comma")
    parser.add_argument("--depth", type=int, default=12, help="blocks of each encoder, at least 3")
    parser.add_argument("--one", choices=("none", "cosine", "op"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    if args.one:
        step(batches[0], args.depth, args.one)
        return
    model = model_of(args.depth)
    before = measured(1, args.depth, "none")
    weights = 4 * sum(p.numel() for p in model.parameters())
    print("| batch | process GiB | step with cosine MiB | with the op MiB | op MiB | share of the peak | by the model: "
          "step MiB | op MiB | share |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for batch in batches:
        cosine, op = (measured(batch, args.depth, head) - before for head in ("cosine", "op"))
        parts = modelled(batch, args.depth, model)
        whole = sum(parts.values())
        # the share is of weights and step, without what Python and the libraries take
        print(f"| {batch} | {(op + before) / 2**30:.2f} | {cosine / 2**20:.0f} | {op / 2**20:.0f} | "
              f"{(op - cosine) / 2**20:.0f} | {(op - cosine) / (op + weights):.1%} | {whole / 2**20:.0f} | "
              f"{parts['op'] / 2**20:.0f} | {parts['op'] / (whole + weights):.1%} |")  # fmt: skip
    print(f"\n{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M weights, encoders of {args.depth} blocks")


if __name__ == "__main__":
    main()
