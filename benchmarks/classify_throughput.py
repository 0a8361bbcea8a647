"""Images a second of zero-shot classification: ours against the published one-image-at-a-time loop.

A ViT-B/16, BERT-base model with random weights scores drawn 1024 x 1024 PNG files against 192 prompts. The published
loop reads an image in the main process, encodes it, and runs the decoder in both directions for that image alone; in
the direction whose memories are texts, the keys and values of all 192 prompts, padded to 98 rows, are computed again
for each image. (Its text encoder, which the published code also runs again for every batch, is left out of its time.)
Both take turns in one process, so a load on the machine slows both; scores are compared before anything is timed.

Usage::

    python benchmarks/classify_throughput.py [--rounds 3] [--images 16] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from carzero.bench.published import PublishedDecoder
from carzero.data.images import ImageProcessor
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.encoded import Encoded
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot.classify import ZeroShotClassifier

#: Rows of an uncollapsed text memory: the sentence vector and 97 word rows.
TEXT_ROWS = 98
FINDINGS = (
    "atelectasis", "cardiomegaly", "consolidation", "pulmonary edema", "pleural effusion", "emphysema", "fibrosis",
    "hernia", "infiltration", "pulmonary mass", "lung nodule", "pleural thickening", "pneumonia", "pneumothorax",
    "calcified granuloma", "bone fracture",
)  # fmt: skip
SITES = (
    "", "on the left", "on the right", "in both lungs", "at the left base", "at the right base", "in the left apex",
    "in the right apex", "in the left upper lobe", "in the right upper lobe", "near the left hilum", "that is new",
)  # fmt: skip


class PublishedLoop:
    """One image at a time, as the published inference code does it."""

    def __init__(self, model: CARZero, prompts: list[str]) -> None:
        self.model, self.processor = model, ImageProcessor(model.config.image.image_size)
        self.decoder = PublishedDecoder(model.decoder.weights()).eval()
        texts = model.encode_texts(prompts)
        self.texts = Encoded(
            F.pad(texts.memory, (0, 0, 0, TEXT_ROWS - min(TEXT_ROWS, texts.memory.shape[1])))[:, :TEXT_ROWS],
            texts.query,
        )

    def __call__(self, path: Path) -> np.ndarray:
        """Scores [prompts] of one image."""
        image = self.model.encode_images(self.processor(path)[None])
        image_memory = self.decoder(image.memory, self.texts.query)
        text_memory = self.decoder(self.texts.memory, image.query).T
        return ((image_memory + text_memory) / 2)[0].numpy()


class Stopwatch:
    """Wraps a module's forward and adds up its seconds."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds, forward = 0.0, module.forward

        def timed(*arguments, **options):
            start = time.perf_counter()
            result = forward(*arguments, **options)
            self.seconds += time.perf_counter() - start
            return result

        module.forward = timed  # type: ignore[method-assign]


def draw(folder: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).normal(128, 60, (64, 64)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03d}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(noise, (1024, 1024), interpolation=cv2.INTER_CUBIC))
    return paths


@torch.inference_mode()
def measure(rounds: int, images: int, published_images: int, workers: int | None, folder: Path) -> dict[str, object]:
    prompts = [" ".join(f"There is {finding} {site}".split()) for finding in FINDINGS for site in SITES]
    torch.manual_seed(0)
    model = CARZero(CARZeroConfig.carzero(), word_tokenizer(prompts)).eval()
    with torch.no_grad():
        # random weights as initialised give scores that differ in the fifth digit only; these differ in the first
        for parameter in model.decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    paths = draw(folder, images)
    published = PublishedLoop(model, prompts)
    classifier = ZeroShotClassifier(model, prompts, batch_size=images, workers=workers, device="cpu")
    encoder = Stopwatch(model.image_encoder)

    # also warms up, and encodes the prompts
    start = time.perf_counter()
    classifier.predict(paths[:1])
    text_seconds = time.perf_counter() - start
    expected = np.stack([published(path) for path in paths[:2]])
    scores = classifier.predict(paths).iloc[:2, 1:].to_numpy()
    error = float(np.linalg.norm(scores - expected) / np.linalg.norm(expected))
    dtype = classifier.choices.dtype[0]
    # float32 through two orders of summation; bfloat16 has 8 bits, and goes through 16 layers
    if not error < (1e-5 if dtype == torch.float32 else 2e-2):
        raise SystemExit(f"the two disagree: relative L2 difference {error:.1e}; nothing was timed")

    samples: dict[str, list[float]] = {"published": [], "ours": [], "encoder": []}
    for number in range(rounds):
        chosen = [paths[(number * published_images + i) % images] for i in range(published_images)]
        start = time.perf_counter()
        for path in chosen:
            published(path)
        samples["published"].append((time.perf_counter() - start) / published_images)
        encoder.seconds = 0.0
        start = time.perf_counter()
        classifier.predict(paths)
        samples["ours"].append((time.perf_counter() - start) / images)
        samples["encoder"].append(encoder.seconds / images)
    return {
        "prompts": len(prompts),
        "images": images,
        "choices": {name: [str(value), why] for name, (value, why) in vars(classifier.choices).items()},
        "relative_difference": error,
        "first_call_seconds": text_seconds,
        "samples": samples,
        "seconds_per_image": {name: statistics.median(values) for name, values in samples.items()},
        "times_faster_at_most": statistics.median(a / b for a, b in zip(samples["published"], samples["encoder"])),
        "times_faster": statistics.median(a / b for a, b in zip(samples["published"], samples["ours"])),
        "encoder_share": statistics.median(a / b for a, b in zip(samples["encoder"], samples["ours"])),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16, help="images of our run in a round, one batch")
    parser.add_argument("--published-images", type=int, default=2, help="images of the published loop in a round")
    parser.add_argument("--workers", type=int, help="processes that read images for ours (default: as chosen)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.rounds, args.images, args.published_images, args.workers, Path(folder))
    seconds = result["seconds_per_image"]
    assert isinstance(seconds, dict)
    dtype = result["choices"]["dtype"][0].removeprefix("torch.")
    print(f"ViT-B/16, {result['prompts']} prompts, {torch.get_num_threads()} threads, {args.rounds} rounds")
    print(f"published in float32, ours in {dtype}; relative difference of scores {result['relative_difference']:.1e}\n")
    print("| | s/image | images/s |\n|---|---:|---:|")
    for name in ("published", "ours"):
        print(f"| {name} | {seconds[name]:.3f} | {1 / seconds[name]:.2f} |")
    print(
        f"\n{result['times_faster']:.1f}x the published loop (target 12x; here {result['times_faster_at_most']:.1f}x "
        "would be left if all but the image encoder were free)"
    )
    print(f"image encoder: {result['encoder_share']:.0%} of our time (target 80 %), {seconds['encoder']:.3f} s/image")
    print(f"first call, with encoding the prompts: {result['first_call_seconds']:.1f} s")
    if args.json:
        from carzero.diagnostics import facts

        command = shlex.join(["python", "benchmarks/classify_throughput.py", *(arguments or sys.argv[1:])])
        args.json.write_text(json.dumps({"command": command, "facts": facts(), **result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
