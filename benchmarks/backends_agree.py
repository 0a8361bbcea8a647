"""Rank real or drawn radiographs through every backend that runs here: the ranks must be the same.

Images are encoded once, in float32; each backend then scores all of them against the prompts in both directions. Two
images whose scores lie closer than rounding may change places; such pairs are counted, and any other is an error.

Usage::

    python benchmarks/backends_agree.py --images FOLDER --weights MODEL --classes "pneumonia,cardiomegaly" [--limit N]

TRITON_INTERPRET=1 adds Triton's kernels, through its interpreter, on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

import carzero
from carzero.data.files import list_images
from carzero.data.images import ImageProcessor
from carzero.models.encoded import Encoded
from carzero.ops.backends import BACKENDS, available
from carzero.prompts.sets import PromptSet

#: Scores closer than this share of their spread may change places: float32 rounding through four layers is near 1e-6.
TIE = 1e-5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of radiographs")
    parser.add_argument("--weights", required=True, help="what carzero.load opens")
    parser.add_argument("--classes", required=True, help="findings, separated by commas")
    parser.add_argument("--limit", type=int, help="only so many images")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = carzero.load(args.weights, device=device).eval()
    prompts = PromptSet.from_findings(args.classes.split(","))
    processor = ImageProcessor(model.config.image.image_size)
    files = list_images([args.images])[: args.limit]
    parts = []
    with torch.no_grad():
        for start in range(0, len(files), 32):
            pixels = torch.stack([processor(file.path) for file in files[start : start + 32]])
            parts.append(model.encode_images(pixels.to(device)))
        images, texts = Encoded.cat(parts), model.encode_texts(prompts.texts)
    print(f"{len(files)} images x {len(prompts)} classes on {device}; model {args.weights}\n")
    print("| backend | seconds | largest difference, share of the spread | pairs of images in another order |")
    print("|---|---:|---:|---:|")
    truth, wrong = None, 0
    for backend in reversed(BACKENDS):
        able, why = available(backend, device)
        if not able:
            print(f"| {backend} | not run: {why} | | |")
            continue
        started = time.perf_counter()
        scores = model.similarity(images, texts, backend=backend).double().cpu()
        seconds = time.perf_counter() - started
        truth = scores if truth is None else truth
        spread = truth.std(0)
        difference = float(((scores - truth).abs() / spread).max())
        gaps = truth[:, None] - truth[None]
        turned = (torch.sign(scores[:, None] - scores[None]) != torch.sign(gaps)) & (gaps.abs() > 0)
        wrong += int((turned & (gaps.abs() > TIE * spread)).sum())
        print(f"| {backend} | {seconds:.1f} | {difference:.1e} | {int(turned.sum()) // 2} |", flush=True)
    print(f"\n{wrong // 2} pairs of images further apart than {TIE:g} of the spread changed places.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
