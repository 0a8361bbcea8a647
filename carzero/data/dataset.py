"""Image-report pairs from a manifest, as a map-style dataset for training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch.utils.data import Dataset

from carzero.data.files import ImageFile
from carzero.data.images import Augmentation, ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REQUIRED, OPTIONAL = ("image", "text"), ("texts", "patient", "study", "split", "view")


class Pair(NamedTuple):
    """One image and its text; pixels are float32 [3, size, size]."""

    pixels: torch.Tensor
    text: str


class ManifestDataset(Dataset[Pair]):
    """The pairs that a manifest lists; images are read when they are asked for.

    Args:
        manifest: CSV (UTF-8, with a header) or Parquet table with the columns ``image`` (path, relative to the
            manifest's folder unless absolute) and ``text``, or ``texts`` in its place: a list of texts (a JSON list in
            CSV); optionally ``patient``, ``study``, ``split`` and ``view``.
        processor: turns an image into pixels.
        split: keep only rows whose ``split`` is this; None keeps all.

    Attributes:
        table: DataFrame of str with the columns the manifest has of those, one row a pair, paths made absolute; a
            list of texts is joined by spaces in the column ``text``.
        images: list of str, the paths.
        texts: list of str.
        parts: for each pair its list of texts, or None where the manifest has no lists.

    Raises:
        UserError: the manifest cannot be read, lacks a column or rows, has empty texts, or names images that do not
            exist; the sentence counts them and lists the first.
    """

    def __init__(
        self, manifest: str | os.PathLike[str], processor: ImageProcessor | None = None, *, split: str | None = None
    ) -> None:
        self.manifest = Path(manifest)
        self.processor = processor or ImageProcessor()
        self.table = select_rows(read_manifest(self.manifest), self.manifest, split)
        self.table["image"] = absolute(self.table["image"], self.manifest)
        check_files(self.table["image"], self.manifest)
        self.images: list[str] = self.table["image"].tolist()
        self.texts: list[str] = self.table["text"].tolist()
        self.parts: list[list[str]] | None = self.table.pop("texts").tolist() if "texts" in self.table else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.pixels(index), self.texts[index])

    def prepare(self, size: int) -> None:
        """From here on images are prepared for a model's input of this size."""
        self.processor = ImageProcessor(size=size)

    def square(self, index: int) -> NDArray[np.uint8]:
        """The resized, padded image of a pair, uint8 ``[side, side]``."""
        return self.processor.square(self.images[index])[0]

    def pixels(
        self, index: int, augmentation: Augmentation | None = None, rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        """The image of a pair, float32 [3, size, size]; with both an augmentation and a generator, a random view."""
        if augmentation is None or rng is None:
            return self.processor(self.images[index])
        return self.processor.augmented(self.images[index], augmentation, rng)


def absolute(images: pd.Series, manifest: Path) -> list[str]:
    """Paths of a manifest's images, which are relative to its folder."""
    folder = manifest.resolve().parent
    return [str(folder / image) for image in images]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV table, all strings, or a Parquet table as it is.

    Raises:
        UserError: it does not exist or is no such table.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"The manifest {path} must be a .csv or .parquet file.")
    try:
        if suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"The manifest {path} does not exist.") from None
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read: {error.strerror or error}.") from None
    except ImportError:
        raise UserError(
            f"The manifest {path} is Parquet, which needs pyarrow: pip install 'carzero[train]', or write it as CSV."
        ) from None
    except pd.errors.EmptyDataError:
        raise UserError(f"The manifest {path} is empty.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The manifest {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except (pd.errors.ParserError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The manifest {path} is not a valid {suffix[1:]} table: {reason}.") from None


def read_manifest(path: Path) -> pd.DataFrame:
    """The columns of a manifest that training knows: str, `texts` a list of str; `text` is made from it where absent.

    Raises:
        UserError: as `read_table`, a column is missing, or a cell of `texts` is no list of strings.
    """
    table = read_table(path)
    if "texts" in table.columns:
        table["texts"] = [_text_list(cell, number, path) for number, cell in enumerate(table["texts"])]
        if "text" not in table.columns:
            table["text"] = table["texts"].map(" ".join)
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise UserError(
            f"The manifest {path} lacks the column{'s' * (len(missing) > 1)} {' and '.join(missing)}; it needs "
            f"{' and '.join(REQUIRED)}, or texts instead of text, and may have {', '.join(OPTIONAL[1:])}; "
            f"it has {', '.join(map(str, table.columns))}."
        )
    kept = table[[name for name in (*REQUIRED, *OPTIONAL) if name in table.columns]].copy()
    for name in kept.columns.difference(["texts"]):
        kept[name] = kept[name].fillna("").astype(str)
    return kept


def _text_list(cell: object, number: int, path: Path) -> list[str]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell) if cell.strip() else []
        except ValueError:
            cell = None
    if (
        isinstance(cell, str | bytes | dict)
        or not hasattr(cell, "__iter__")
        or not all(isinstance(t, str) for t in cell)
    ):
        raise UserError(
            f"The manifest {path} has no list of texts in the column texts of row {number + 2}, counting the header as "
            'row 1; a CSV cell holds a JSON list: ["There is effusion.", "The heart is normal."].'
        )
    return [text for text in cell if text.strip()]


def manifest_images(manifest: str | os.PathLike[str], split: str | None = None) -> list[ImageFile]:
    """The images of a manifest, each once, named as it names them; it needs no texts.

    Raises:
        UserError: it cannot be read, lacks the column image or the split, or names files that do not exist.
    """
    path = Path(manifest)
    table = read_table(path)
    if "image" not in table.columns:
        raise UserError(f"The manifest {path} lacks the column image; it has {', '.join(map(str, table.columns))}.")
    table = select_rows(table.fillna({"image": ""}).astype({"image": str}), path, split, ("image",))
    names = list(dict.fromkeys(table["image"]))
    files = absolute(pd.Series(names), path)
    check_files(files, path)
    return [ImageFile(name, Path(file)) for name, file in zip(names, files)]


def select_rows(
    table: pd.DataFrame, manifest: Path, split: str | None, filled: Sequence[str] = REQUIRED
) -> pd.DataFrame:
    """The rows of a split, numbered from 0.

    Raises:
        UserError: there are none, or a cell of the columns `filled` is blank.
    """
    if split is not None:
        if "split" not in table.columns:
            raise UserError(f"The manifest {manifest} has no column split, but the split {split!r} was asked for.")
        known = sorted(set(table["split"].astype(str)))
        if split not in known:
            raise UserError(f"The manifest {manifest} has no row of split {split!r}; it has {', '.join(known)}.")
        table = table[table["split"] == split]
    if table.empty:
        raise UserError(f"The manifest {manifest} has a header but no rows.")
    for name in filled:
        # a row's number is its line where no text has line breaks: the header is line 1
        rows = [str(number + 2) for number in table.index[table[name].str.strip() == ""]]
        if rows:
            raise UserError(
                f"The manifest {manifest} has {len(rows)} of {len(table)} rows with an empty {name} "
                f"(row {_some(rows)}, counting the header as row 1): fill or remove them."
            )
    return table.reset_index(drop=True)


def check_files(images: Iterable[str], manifest: Path) -> None:
    """Raise where files that a manifest names do not exist; the sentence counts them and lists the first."""
    images = list(images)
    missing = [path for path in images if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"The manifest {manifest} names {len(missing)} of {len(images)} images that do not exist: "
            f"{_some(missing)}. Paths are relative to the manifest's folder unless absolute."
        )


def _some(values: list[str], most: int = 5) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
