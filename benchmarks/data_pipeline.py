"""Images of a batch: as the published dataset class loads them, and as `carzero train` does, in one process.

    python benchmarks/data_pipeline.py [--images 64] [--side 1024] [--rounds 3]

Drawn grey PNGs of side x side pixels. Published: read, resize, pad, then PIL and float transforms of three channels
(random crop, flip, affine, brightness, contrast) in the main process. Ours: grey bytes, one affine step, levels looked
up for the whole batch; then from the cache of prepared images, and from shards of them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import carzero  # noqa: F401  torchvision needs its guard
from carzero.data.images import MEAN, STD, ImageProcessor
from carzero.data.sharding import write_shards
from carzero.data.shards import ShardedPairs
from carzero.data.squares import SquareCache
from carzero.train.batches import AUGMENTATIONS

# isort: split
from torchvision.transforms import v2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{k}.png") for k in range(args.images)]
        for k, path in enumerate(paths):
            small = np.random.default_rng(k).integers(0, 256, (64, 64), dtype=np.uint8)
            cv2.imwrite(path, cv2.resize(small, (args.side, args.side), interpolation=cv2.INTER_CUBIC))
        manifest, shards = Path(folder) / "pairs.csv", Path(folder) / "shards"
        manifest.write_text("\n".join(["image,text", *(f"{Path(path).name},a chest radiograph" for path in paths)]))
        write_shards(manifest, shards)
        report(paths, ShardedPairs(str(shards)), args)


def report(paths: list[str], shards: ShardedPairs, args: argparse.Namespace) -> None:
    processor, augmentation = ImageProcessor(), AUGMENTATIONS["published"]
    cache = SquareCache(paths, processor)
    assert augmentation is not None
    transform = v2.Compose(
        [
            v2.RandomCrop(224), v2.RandomHorizontalFlip(0.3), v2.RandomAffine(30, (0.1, 0.1), (0.9, 1.1)),
            v2.ColorJitter((0.8, 1.2), (0.8, 1.2)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([MEAN] * 3, [STD] * 3),
        ]
    )  # fmt: skip

    def published() -> torch.Tensor:
        return torch.stack([transform(Image.fromarray(processor.square(path)[0]).convert("RGB")) for path in paths])

    def ours(square: Callable[[int], np.ndarray]) -> torch.Tensor:
        views = [augmentation(square(k), 224, np.random.default_rng(k)) for k in range(len(paths))]
        return processor.normalize_batch(torch.from_numpy(np.stack(views)))

    ways = {
        "published way": published,
        "carzero": lambda: ours(lambda k: processor.square(paths[k])[0]),
        "carzero, cached": lambda: ours(cache.__getitem__),
        "carzero, shards": lambda: ours(shards.square),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for act in ways.values():
        act()
    for _ in range(args.rounds):
        for name, act in ways.items():
            start = time.perf_counter()
            act()
            found[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in found.items()}
    print("| way | images/s | of the published way |\n|---|---:|---:|")
    for name, seconds in median.items():
        print(f"| {name} | {len(paths) / seconds:.0f} | {median['published way'] / seconds:.2f} x |")
    print(f"\n{len(paths)} PNGs of {args.side} x {args.side}, one process, median of {args.rounds}")


if __name__ == "__main__":
    main()
