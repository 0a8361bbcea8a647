"""From a manifest to a folder of shards: every image prepared once, every text beside them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import pandas as pd

import carzero
from carzero.data.dataset import absolute, check_files, read_manifest, select_rows
from carzero.data.decode import ImageError
from carzero.data.images import ImageProcessor
from carzero.data.shards import ABOUT, PAIRS, write_items
from carzero.errors import UserError


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        pairs, images, shards: how many; an image that several pairs name is held once.
        bytes: of the shards.
    """

    pairs: int
    images: int
    shards: int
    bytes: int


def write_shards(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    size: int = 224,
    per_shard: int = 1024,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a manifest's pairs as shards that `carzero.data.shards.ShardedPairs` reads.

    Images are resized and padded as training does it, and kept without loss as PNG: training from the shards sees the
    pixels that it would see from the files. The folder appears under its name when it is complete.

    Args:
        manifest: as `ManifestDataset` takes it.
        out: folder to make; its files go to object storage as they are.
        split: keep only rows whose ``split`` is this.
        size: side of the model's input in pixels.
        per_shard: images of a shard; 1,024 are some 40 MB.
        workers: processes that read images; 0 reads in this one.
        progress: called with images done and in all.

    Raises:
        UserError: the manifest is wrong, an image cannot be read, or the folder exists or cannot be written.
    """
    path, final = Path(manifest), Path(out)
    if per_shard < 1:
        raise UserError(f"data shard: a shard holds at least 1 image, got {per_shard}.")
    if final.exists():
        raise UserError(f"data shard: {final} exists already: name a new folder.")
    table = select_rows(read_manifest(path), path, split)
    files = absolute(table["image"], path)
    check_files(files, path)
    # numbers by first appearance
    items, unique = pd.factorize(pd.Series(files))
    half = final.with_name(f".{final.name}.partial")
    shutil.rmtree(half, ignore_errors=True)
    made = 0

    def done() -> None:
        nonlocal made
        made += 1
        if progress:
            progress(made, len(unique))

    try:
        half.mkdir(parents=True)
        with _prepared(list(unique), ImageProcessor(size=size), workers) as pngs:
            write_items(half, pngs, per_shard, done)
        table.assign(item=items).to_parquet(half / PAIRS, index=False)
        about = {"format": 1, "size": size, "pairs": len(table), "images": len(unique), "carzero": carzero.__version__}
        (half / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        shards = list(half.glob("chunk-*"))
        written = Written(len(table), len(unique), len(shards), sum(shard.stat().st_size for shard in shards))
        os.replace(half, final)
    except OSError as error:
        raise UserError(f"data shard: {final} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return written


@contextlib.contextmanager
def _prepared(files: list[str], processor: ImageProcessor, workers: int) -> Iterator[Iterator[bytes]]:
    """The PNGs of the files' squares, in order."""
    make = partial(_png, processor)
    if not workers:
        yield map(make, files)
        return
    # a fresh process each: OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map(make, files, chunksize=16)


def _png(processor: ImageProcessor, file: str) -> bytes:
    try:
        return cv2.imencode(".png", processor.square(file)[0])[1].tobytes()
    except ImageError as error:
        raise UserError(f"data shard: {error} `carzero data check` finds all such files.") from None
