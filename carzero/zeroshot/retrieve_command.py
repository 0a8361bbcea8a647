"""``carzero retrieve``: the reports that fit an image, the images that fit a report, and how often that is right."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from carzero.errors import UserError

if TYPE_CHECKING:
    from carzero.data.files import ImageFile
    from carzero.models.carzero import CARZero
    from carzero.models.encoded import Encoded
    from carzero.zeroshot.retrieval import Retriever


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="PNG, JPEG or DICOM files, or folders")
    parser.add_argument(
        "--texts",
        required=True,
        metavar="FILE",
        help=".txt with a text a line, or .csv with a column text; its columns image and patient, where there are any, "
        "say whose text it is, and figures are printed",
    )
    parser.add_argument("--weights", required=True, help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for image_to_text.csv and text_to_image.csv"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="candidates listed of each (default: 10)")
    parser.add_argument(
        "--shortlist",
        type=int,
        metavar="N",
        help="score the N candidates of the highest cosine only (default: all pairs)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default: none)"
    )


@dataclass(frozen=True)
class Texts:
    """Different texts, in order, and which image and patient each row of the file names.

    Args:
        texts: T different texts.
        pairs: (text number, image key) of each row, empty where the file names no image.
        patients: image key -> patient, empty where the file names none.
    """

    texts: list[str]
    pairs: list[tuple[int, str]]
    patients: dict[str, str]


def run(args: argparse.Namespace) -> int:
    """Rank, write and print; returns the exit code (1: an image could not be read)."""
    from carzero.data.files import list_images

    if args.top < 1 or args.workers < 0 or (args.shortlist is not None and args.shortlist < 1):
        raise UserError(
            f"--top and --shortlist must be at least 1 and --workers 0, got {args.top}, {args.shortlist} and "
            f"{args.workers}."
        )
    texts = read_texts(Path(args.texts))
    files = list_images(args.images)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be made: {error.strerror}.") from None
    from carzero.models.checkpoint import load
    from carzero.zeroshot.retrieval import Retriever

    model = load(args.weights, tokenizer=args.tokenizer)
    images, read, failures = encode_files(model, files, args.workers)
    for name, reason in failures:
        print(f"carzero retrieve: {name}: {reason}.", file=sys.stderr)
    import torch

    with torch.no_grad(), model.evaluating():
        encoded = model.encode_texts(texts.texts, batch_size=64)
    retriever = Retriever(model, images, encoded, shortlist=args.shortlist)
    names = [file.name for file in read]
    _list(retriever, names, texts.texts, args.top, out)
    how = (
        "all pairs scored" if args.shortlist is None else f"a shortlist of {args.shortlist} by cosine, scored by the op"
    )
    print(f"{out}: {len(names)} images and {len(texts.texts)} texts, {how}. Not a medical device.")
    if texts.pairs:
        _figures(retriever, names, texts)
    return 1 if failures else 0


def read_texts(path: Path) -> Texts:
    """Texts of a .txt or .csv file.

    Raises:
        UserError: it cannot be read or holds no text; the sentence names the file and the line.
    """
    from carzero.evaluate.boxes import image_key

    if path.suffix.lower() not in (".txt", ".csv"):
        raise UserError(f"The file of texts {path} must end in .txt or .csv.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text (byte {error.start})"
        raise UserError(f"The file of texts {path} cannot be read: {reason}.") from None
    numbers: dict[str, int] = {}
    pairs: list[tuple[int, str]] = []
    patients: dict[str, str] = {}
    if path.suffix.lower() == ".txt":
        for line in filter(None, map(str.strip, lines)):
            numbers.setdefault(line, len(numbers))
    else:
        rows = csv.DictReader(lines)
        header = rows.fieldnames or []
        if "text" not in header:
            raise UserError(f"The file of texts {path} needs a column text, got {', '.join(header)}.")
        for row in rows:
            text = (row["text"] or "").strip()
            if not text:
                raise UserError(f"The file of texts {path}, line {rows.line_num}: the text is empty.")
            number = numbers.setdefault(text, len(numbers))
            if row.get("image"):
                key = image_key(row["image"])
                pairs.append((number, key))
                if row.get("patient"):
                    patients[key] = row["patient"]
    if not numbers:
        raise UserError(f"The file of texts {path} holds no text.")
    return Texts(list(numbers), pairs, patients)


def encode_files(
    model: CARZero, files: Sequence[ImageFile], workers: int
) -> tuple[Encoded, list[ImageFile], list[tuple[str, str]]]:
    """Images encoded for retrieval, the files that they are of, and (name, reason) of those that cannot be read.

    Raises:
        UserError: none can be read.
    """
    import torch

    from carzero.data.images import ImageProcessor
    from carzero.models.encoded import Encoded
    from carzero.zeroshot.reading import read_batches

    processor = ImageProcessor(model.config.image.image_size)
    parts, read, failures = [], [], []
    with torch.no_grad(), model.evaluating():
        for batch in read_batches([file.path for file in files], processor, batch_size=16, workers=workers):
            failures += [(files[index].name, reason) for index, reason in sorted(batch.failures.items())]
            if batch.indices:
                parts.append(model.encode_images(batch.pixels))
                read += [files[index] for index in batch.indices]
    if not parts:
        raise UserError(f"None of the {len(files)} images can be read, the first: {failures[0][0]} {failures[0][1]}.")
    return Encoded.cat(parts), read, failures


def _list(retriever: Retriever, names: list[str], texts: list[str], top: int, out: Path) -> None:
    import pandas as pd

    from carzero.zeroshot.command import write_table

    for direction, queries, candidates, file in (
        ("image to text", names, texts, "image_to_text.csv"),
        ("text to image", texts, names, "text_to_image.csv"),
    ):
        ranking = retriever.rank(direction, top)  # type: ignore[arg-type]
        columns = ("image", "text") if direction == "image to text" else ("text", "image")
        rows = [
            (query, place, candidates[number], score)
            for query, numbers, scores in zip(queries, ranking.index.tolist(), ranking.scores.tolist())
            for place, (number, score) in enumerate(zip(numbers, scores), 1)
        ]
        table = pd.DataFrame(rows, columns=[columns[0], "rank", columns[1], "score"])
        write_table(table, out / file)


def _figures(retriever: Retriever, names: list[str], texts: Texts) -> None:
    """R@k both ways, of the images that were read and have a text, and the texts that have an image."""
    import numpy as np

    from carzero.evaluate.bootstrap import mean_interval
    from carzero.evaluate.boxes import image_key
    from carzero.zeroshot.retrieval import TOPS, Direction, retrieval_figures

    place = {image_key(name): number for number, name in enumerate(names)}
    if len(place) < len(names):
        raise UserError(
            "Two images have the same file name, so texts cannot be joined to them: give one of them another."
        )
    pairs = [(text, place[key]) for text, key in texts.pairs if key in place]
    if not pairs:
        raise UserError("No text names one of the images: they are joined by file name without ending.")
    unit = "patients" if texts.patients else "images"
    owners = [texts.patients.get(image_key(name), f"image {name}") for name in names]
    right: dict[str, dict[int, list[int]]] = {"image to text": {}, "text to image": {}}
    for text, image in pairs:
        right["image to text"].setdefault(image, []).append(text)
        right["text to image"].setdefault(text, []).append(image)
    for direction in get_args(Direction):
        known = right[direction]
        queries = sorted(known)
        ranks = retriever.ranks(direction, known)[queries]
        candidates = len(texts.texts) if direction == "image to text" else len(names)
        figures = retrieval_figures(ranks, candidates)
        # a text of several images goes with the first of them
        units = [owners[query if direction == "image to text" else known[query][0]] for query in queries]
        hits = np.stack([ranks <= k for k in TOPS], 1).astype(float)
        shown = []
        for k, hit in zip(TOPS, hits.T):
            interval = mean_interval(hit, units)
            shown.append(f"R@{k} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})")
        lost = f", {figures.lost:.3f} lost by the shortlist" if retriever.shortlist is not None else ""
        print(
            f"  {direction}: n={figures.n} of {candidates} candidates, {', '.join(shown)}, median rank "
            f"{figures.median_rank:g}{lost}; 95 % intervals by {unit}"
        )
