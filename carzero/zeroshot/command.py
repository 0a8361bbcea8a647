"""``carzero classify``: a table of scores from images or folders and a list of findings."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from carzero.data.files import ImageFile
    from carzero.prompts.sets import PromptSet
    from carzero.train.ranks import Ranks
    from carzero.zeroshot.classify import ZeroShotClassifier

LOGITS = (
    "Scores are logits, not probabilities: for one class a higher score means more likely, among images scored with "
    "the same weights and prompts; classes do not compare. Not a medical device."
)


def configure(parser: argparse.ArgumentParser) -> None:
    configure_scoring(parser)
    parser.add_argument("--out", required=True, metavar="FILE.csv", help="table to write: a row an image")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    configure_parts(parser)
    parser.add_argument(
        "--add",
        metavar="A,B",
        default="",
        help="more columns: quantile (of a class's score in the reference set), probability (calibrated), guard (what "
        "an image that is no upright frontal chest radiograph looks like)",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="scores.json of `carzero calibrate` (default: the one in the model's folder)",
    )


def configure_parts(parser: argparse._ActionsContainer) -> None:
    """Options of every command that scores in parts."""
    parser.add_argument("--parts", metavar="FOLDER", help="score in parts kept here: resumable, and shared by torchrun")
    parser.add_argument("--part-size", type=int, default=1024, metavar="N", help="images of a part (default: 1024)")


def configure_scoring(parser: argparse.ArgumentParser) -> None:
    """Options of every command that scores images."""
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="PNG, JPEG or DICOM files, or folders")
    parser.add_argument("--manifest", metavar="FILE", help="CSV or Parquet table with the column image, instead")
    parser.add_argument("--split", help="with --manifest: rows whose column split is this (default: all)")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        help='.json {"class": "prompt" or ["prompt", ...]}, .csv with the columns class and prompt, or .txt with a '
        "prompt a line",
    )
    prompts.add_argument("--classes", metavar="A,B", help="findings, separated by commas; prompts follow --template")
    parser.add_argument(
        "--template", default="There is {finding}", help="wording for --classes (default: %(default)s)", metavar="TEXT"
    )
    parser.add_argument("--weights", required=True, help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument(
        "--pool", choices=("mean", "max"), default="mean", help="of a class's several prompts (default: mean)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: by cores)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where present)")


def run(args: argparse.Namespace) -> int:
    """Score and write; returns the exit code (1: an image could not be scored, 130: interrupted)."""
    from carzero.data.decode import ImageError

    try:
        return _classify(args)
    except ImageError as error:
        print(
            f"carzero classify: {error} Stopped at the first failure (--strict); nothing was written.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("carzero classify: interrupted; nothing was written.", file=sys.stderr)
        return 130


def _classify(args: argparse.Namespace) -> int:
    out = Path(args.out)
    _check_writable(out)
    columns = _columns(args.add)
    if args.reference is not None and not {"quantile", "probability"} & set(columns):
        raise UserError("--reference is for --add quantile or --add probability, which was not asked for.")
    prompts = read_prompts(args)
    from carzero.prompts.lint import lint

    _warn("classify", lint(prompts))
    images = listed_images(args)
    ranks = _join(args, columns)
    classifier = make_classifier(args, prompts)
    from carzero.zeroshot.columns import add_columns, find_reference

    reference = None
    if {"quantile", "probability"} & set(columns):
        # before the work, so that a reference of other weights stops it
        reference = find_reference(classifier, args.weights, args.reference)
    if ranks is None:
        scores = predict(classifier, images, strict=args.strict)
    else:
        from carzero.zeroshot.parts import classify_parts

        merged = classify_parts(
            classifier, images, Path(args.parts), weights=args.weights, size=args.part_size, ranks=ranks
        )
        if merged is None:
            return 0
        scores = merged
    write_table(add_columns(scores, columns, classifier.verdicts, reference), out)
    print(f"{out}: {len(scores)} images x {len(prompts)} classes. {LOGITS}")
    return report(classifier, out, "classify")


def listed_images(args: argparse.Namespace) -> list[ImageFile]:
    """The images that the options of `configure_scoring` name."""
    if bool(args.images) == bool(args.manifest):
        raise UserError("Name either images and folders, or a table of them with --manifest.")
    if args.split is not None and not args.manifest:
        raise UserError("--split goes with --manifest.")
    if args.manifest:
        from carzero.data.dataset import manifest_images

        return manifest_images(args.manifest, args.split)
    from carzero.data.files import list_images

    return list_images(args.images)


def make_classifier(args: argparse.Namespace, prompts: PromptSet) -> ZeroShotClassifier:
    """The classifier that the options of `configure_scoring` ask for."""
    # the slow imports come after all that can be wrong without them
    from carzero.models.checkpoint import load
    from carzero.zeroshot.classify import ZeroShotClassifier

    return ZeroShotClassifier(
        load(args.weights, tokenizer=args.tokenizer),
        prompts,
        pool=args.pool,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )


def _columns(text: str) -> list[str]:
    known = ("quantile", "probability", "guard")
    columns = [part.strip() for part in text.split(",") if part.strip()]
    for name in columns:
        if name not in known:
            raise UserError(f"--add knows {', '.join(known)}, not {name!r}.")
    return columns


def _join(args: argparse.Namespace, columns: Sequence[str]) -> Ranks | None:
    if args.parts is not None and args.strict:
        raise UserError("--parts lists the images that cannot be read: leave --strict out.")
    if args.parts is not None and "guard" in columns:
        raise UserError("--parts keeps scores and failures, not the guard's verdicts: leave guard out of --add.")
    return join_parts(args)


def join_parts(args: argparse.Namespace) -> Ranks | None:
    """The processes that share the work, where it is cut into parts; this one's device becomes torch's."""
    if args.parts is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("Several processes share the work in parts: give --parts FOLDER.")
        return None
    if args.part_size < 1:
        raise UserError(f"--part-size must be at least 1, got {args.part_size}.")
    from carzero.train.ranks import join

    return join()


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file in one step: whatever happens, there is the old file, or none, or the whole new one."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            table.to_csv(file, index=False)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"The table {path} cannot be written: {error.strerror}.") from None
        raise


def read_prompts(args: argparse.Namespace) -> PromptSet:
    from carzero.prompts.sets import PromptSet, load_prompts

    if args.prompts is not None:
        return load_prompts(args.prompts)
    return PromptSet.from_findings([name for name in args.classes.split(",") if name.strip()], args.template)


def predict(classifier: ZeroShotClassifier, images: list, *, strict: bool = False) -> pd.DataFrame:
    """The classifier's table, with its choices and a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=len(images))

        def progress(done: int, total: int) -> None:
            if done == 0:
                for name, (value, reason) in vars(classifier.choices).items():
                    if name == "graph" and classifier.choices.device[0].type != "cuda":
                        continue
                    console.print(f"{name}: {str(value).removeprefix('torch.')} ({reason})", markup=False)
            bar.update(task, completed=done, total=total)

        return classifier.predict(images, strict=strict, progress=progress)


def report(classifier: ZeroShotClassifier, out: Path, command: str) -> int:
    """Warnings and the table of failures on stderr, and beside the file written; returns the exit code."""
    _warn(command, classifier.warnings)
    failures = _failures_path(out)
    if classifier.failures.empty:
        # of an earlier run into the same file
        failures.unlink(missing_ok=True)
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    write_table(classifier.failures, failures)
    table = Table("image", "reason", title=f"{len(classifier.failures)} images could not be scored")
    for name, reason in list(classifier.failures.itertuples(index=False))[:50]:
        table.add_row(Text(name, overflow="fold"), Text(reason))
    Console(stderr=True).print(table)
    print(f"carzero {command}: all failures are listed in {failures}.", file=sys.stderr)
    return 1


def _warn(command: str, sentences: Sequence[str], most: int = 5) -> None:
    for sentence in sentences[:most]:
        print(f"carzero {command}: warning: {sentence}", file=sys.stderr)
    if len(sentences) > most:
        print(f"carzero {command}: {len(sentences) - most} more such warnings.", file=sys.stderr)


def _failures_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.failures.csv")


def _check_writable(out: Path) -> None:
    """Raise before any work is done where the table could not be written in the end."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out must end in .csv, got {out}.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from None
    if out.exists() and not os.access(out, os.W_OK):
        raise UserError(f"--out {out} exists and may not be written.")
