"""Prepared images in shards for object storage, read by number: any pair of any step, from any process."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from carzero.data.dataset import read_table, select_rows
from carzero.data.images import ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Beside the shards: what they hold, and the manifest without its paths.
ABOUT, PAIRS, INDEX = "shards.json", "pairs.parquet", "index.json"
#: Places that are fetched from, as litdata names them; ``local:`` is a folder that is treated like one.
REMOTE = ("s3://", "gs://", "azure://", "r2://", "hf://", "local:")


def is_sharded(manifest: str | os.PathLike[str]) -> bool:
    """Whether a manifest is a folder of shards, here or in object storage, and not a table."""
    return str(manifest).startswith(REMOTE) or Path(manifest).is_dir()


class ShardedPairs:
    """The pairs of a folder that `carzero.data.sharding.write_shards` wrote; what `ManifestDataset` is for files.

    An image is read by its number, whatever was read before, so that the position of a run stays one integer. Its
    bytes are compared with the checksum that was written with them.

    Args:
        root: folder, or its address in object storage.
        split: keep only rows whose ``split`` is this; None keeps all.
        kept_in: local folder in which fetched shards stay, for later runs and the machine's other processes too;
            needed for object storage, without a use for a folder.

    Attributes:
        images, texts, parts: as of `ManifestDataset`; images are names that messages use.
        shard_of: int64 ``[N]``, the shard that holds each pair's image.
        processor: of the images that the shards hold.

    Raises:
        UserError: it is no folder of shards, has not the split, is of a later format, or cannot be fetched.
    """

    def __init__(self, root: str, *, split: str | None = None, kept_in: str | os.PathLike[str] | None = None) -> None:
        if not root.startswith(REMOTE):
            if kept_in is not None:
                raise UserError(f"train: the shards in {root} are read where they are: leave cache_folder out.")
            self._folder, self._fetch = Path(root), None
        elif kept_in is None:
            raise UserError(f"train: shards are fetched from {root}: name a local cache_folder in which they stay.")
        else:
            # another address has a folder of its own
            self._folder = Path(kept_in) / f"shards-{zlib.crc32(root.encode()):08x}"
            self._fetch = _Fetch(root, self._folder)
        _litdata()
        self.root = root
        about = self._json(ABOUT)
        if about.get("format") != 1:
            raise UserError(f"train: {root} holds shards of format {about.get('format')}, this version reads format 1.")
        self.processor = ImageProcessor(size=about["size"])
        table = select_rows(read_table(self._path(PAIRS)), Path(root), split)
        self.images: list[str] = table["image"].tolist()
        self.texts: list[str] = table["text"].tolist()
        self.parts: list[list[str]] | None = [list(t) for t in table["texts"]] if "texts" in table else None
        self._shards: list[dict[str, Any]] = self._json(INDEX)["chunks"]
        self._items = table["item"].to_numpy(np.int64)
        last = np.cumsum([shard["chunk_size"] for shard in self._shards])
        if last[-1] != about["images"]:
            raise UserError(f"train: the shards in {root} hold {last[-1]} images and should hold {about['images']}.")
        self.shard_of: NDArray[np.int64] = np.searchsorted(last, self._items, side="right")
        self._opened: tuple[int, Any] | None = None

    def prepare(self, size: int) -> None:
        """Raise unless the shards hold images for a model's input of this size."""
        if size != self.processor.size:
            raise UserError(
                f"train: {self.root} holds images prepared for a model's input of {self.processor.size} pixels, and "
                f"this model takes {size}: write them again with `carzero data shard --size {size}`."
            )

    def square(self, index: int) -> NDArray[np.uint8]:
        """uint8 ``[side, side]``: ``processor.square(path)[0]`` of the file that was put into the shard.

        Raises:
            UserError: the shard cannot be fetched, or the bytes are not those that were written.
        """
        item, shard = int(self._items[index]), int(self.shard_of[index])
        name = self._shards[shard]["filename"]
        path = self._path(name)
        try:
            size = path.stat().st_size
            found = self._cache()[item]
        # a cut file fails in the reader's slices and structs, with as many kinds of errors
        except Exception as error:
            raise UserError(
                f"train: {self.images[index]} cannot be read from {path}: {' '.join(str(error).split())}."
            ) from error
        if found["item"] != item or zlib.crc32(found["png"]) != found["crc"]:
            raise UserError(
                f"train: {self.images[index]} in {path} ({size} bytes) is not what was written: fetch or write the "
                "shard again."
            )
        square = cv2.imdecode(np.frombuffer(found["png"], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert square is not None, "the bytes are those that were written"
        return square.astype(np.uint8, copy=False)

    def describe(self) -> str:
        """The shards in words."""
        kept = f", kept in {self._folder}" if self._fetch else ""
        return f"{len(self._shards)} shards of prepared images{kept}"

    def _cache(self) -> Any:
        """litdata's reader; a forked process opens one of its own, for a reader has an open file."""
        if self._opened is None or self._opened[0] != os.getpid():
            # the size is of shards that it might write, without which it cannot be made
            self._opened = (os.getpid(), _litdata().streaming.Cache(str(self._folder), chunk_size=1))
        return self._opened[1]

    def _path(self, name: str) -> Path:
        if self._fetch is not None:
            self._fetch(name)
        return self._folder / name

    def _json(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"train: the folder {self.root} is no manifest and holds no shards ({name} is missing or damaged); "
                "`carzero data shard` writes them."
            ) from None


class _Fetch:
    """Brings a file of a remote folder here, once, by litdata's downloader; half of one is never seen."""

    def __init__(self, root: str, folder: Path) -> None:
        self.root, self.folder = root.rstrip("/"), folder

    def __call__(self, name: str, *, patience: float = 600) -> None:
        path, started = self.folder / name, time.monotonic()
        if path.exists():
            return
        from litdata.streaming.downloader import get_downloader

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not path.exists():
                # returns without the file where another process is fetching it
                get_downloader(self.root, str(self.folder), []).download_file(f"{self.root}/{name}", str(path))
                if time.monotonic() - started > patience:
                    raise TimeoutError(f"another process has been fetching it for {patience:.0f} s")
                if not path.exists():
                    time.sleep(0.05)
        # each store's client has errors of its own
        except Exception as error:
            raise UserError(
                f"train: {self.root}/{name} cannot be fetched: {type(error).__name__}: {' '.join(str(error).split())}."
            ) from error


def write_items(folder: Path, pngs: Iterable[bytes], per_shard: int, done: Callable[[], None]) -> None:
    """Shards of so many images, in order, with litdata's index."""
    cache = _litdata().streaming.Cache(str(folder), chunk_size=per_shard)
    for item, png in enumerate(pngs):
        cache[item] = {"item": item, "crc": zlib.crc32(png), "png": png}
        done()
    cache.done()
    cache.merge(1)


def _litdata() -> Any:
    try:
        import litdata
    except ImportError:
        raise UserError("Shards need litdata: pip install 'carzero[shards]'.") from None
    return litdata
