"""Image-report pairs from a manifest, as a map-style dataset for training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch.utils.data import Dataset

from carzero.data.images import Augmentation, ImageProcessor
from carzero.errors import UserError

if TYPE_CHECKING:
    import numpy as np

REQUIRED, OPTIONAL = ("image", "text"), ("patient", "split", "view")


class Pair(NamedTuple):
    """One image and its text; pixels are float32 [3, size, size]."""

    pixels: torch.Tensor
    text: str


class ManifestDataset(Dataset[Pair]):
    """The pairs that a manifest lists; images are read when they are asked for.

    Args:
        manifest: CSV (UTF-8, with a header) or Parquet table with the columns ``image`` (path, relative to the
            manifest's folder unless absolute) and ``text``, and optionally ``patient``, ``split`` and ``view``.
        processor: turns an image into pixels.
        split: keep only rows whose ``split`` is this; None keeps all.

    Attributes:
        table: DataFrame of str with the columns the manifest has of the five, one row a pair, paths made absolute.
        images: list of str, the paths.
        texts: list of str.

    Raises:
        UserError: the manifest cannot be read, lacks a column or rows, has empty texts, or names images that do not
            exist; the sentence counts them and lists the first.
    """

    def __init__(
        self, manifest: str | os.PathLike[str], processor: ImageProcessor | None = None, *, split: str | None = None
    ) -> None:
        self.manifest = Path(manifest)
        self.processor = processor or ImageProcessor()
        self.table = _select(_read_table(self.manifest), self.manifest, split)
        folder = self.manifest.resolve().parent
        self.table["image"] = [str(folder / image) for image in self.table["image"]]
        _check_files(self.table["image"], self.manifest)
        self.images: list[str] = self.table["image"].tolist()
        self.texts: list[str] = self.table["text"].tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.pixels(index), self.texts[index])

    def pixels(
        self, index: int, augmentation: Augmentation | None = None, rng: np.random.Generator | None = None
    ) -> torch.Tensor:
        """The image of a pair, float32 [3, size, size]; with both an augmentation and a generator, a random view."""
        if augmentation is None or rng is None:
            return self.processor(self.images[index])
        return self.processor.augmented(self.images[index], augmentation, rng)


def _read_table(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"The manifest {path} must be a .csv or .parquet file.")
    try:
        if suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
        else:
            table = pd.read_parquet(path)
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
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise UserError(
            f"The manifest {path} lacks the column{'s' * (len(missing) > 1)} {' and '.join(missing)}; it needs "
            f"{' and '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}; "
            f"it has {', '.join(map(str, table.columns))}."
        )
    kept = table[[name for name in (*REQUIRED, *OPTIONAL) if name in table.columns]]
    return kept.fillna("").astype(str)


def _select(table: pd.DataFrame, manifest: Path, split: str | None) -> pd.DataFrame:
    if split is not None:
        if "split" not in table.columns:
            raise UserError(f"The manifest {manifest} has no column split, but the split {split!r} was asked for.")
        known = sorted(set(table["split"]))
        if split not in known:
            raise UserError(f"The manifest {manifest} has no row of split {split!r}; it has {', '.join(known)}.")
        table = table[table["split"] == split]
    if table.empty:
        raise UserError(f"The manifest {manifest} has a header but no rows.")
    for name in REQUIRED:
        # a row's number is its line where no text has line breaks: the header is line 1
        rows = [str(number + 2) for number in table.index[table[name].str.strip() == ""]]
        if rows:
            raise UserError(
                f"The manifest {manifest} has {len(rows)} of {len(table)} rows with an empty {name} "
                f"(row {_some(rows)}, counting the header as row 1): fill or remove them."
            )
    return table.reset_index(drop=True)


def _check_files(images: pd.Series, manifest: Path) -> None:
    missing = [path for path in images if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"The manifest {manifest} names {len(missing)} of {len(images)} images that do not exist: "
            f"{_some(missing)}. Paths are relative to the manifest's folder unless absolute."
        )


def _some(values: list[str], most: int = 5) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
