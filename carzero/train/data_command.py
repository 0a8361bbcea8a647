"""``carzero data``: check a manifest before a run, make one from the files of a public set, or write it as shards."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from carzero.data.adapters import ADAPTERS
from carzero.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", metavar="check|manifest|shard", required=True)
    check = commands.add_parser("check", help="look a manifest over; the exit code is 1 where a run would suffer")
    check.add_argument("manifest", help="CSV or Parquet table with the columns image and text or texts")
    check.add_argument("--tokenizer", help="folder or hub id, to count word pieces (default: words are counted)")
    check.add_argument("--max-tokens", type=int, default=97, help="word pieces of the text encoder (default: 97)")
    check.add_argument("--workers", type=int, default=0, help="processes that decode images (default: 0)")
    check.add_argument(
        "--no-images", action="store_true", help="do not decode images, only look whether they are there"
    )
    check.add_argument("--report", metavar="FILE.csv", help="write every row with a problem into this table")
    kinds = "; ".join(f"{name}: {text}" for name, text in ADAPTERS.items())
    make = commands.add_parser("manifest", help="make a manifest from the published layout of a set", description=kinds)
    make.add_argument("set", choices=list(ADAPTERS), help="which set")
    make.add_argument("root", help="its folder")
    make.add_argument("--out", required=True, metavar="FILE", help=".csv or .parquet to write")
    make.add_argument("--reports", help="folder or table of its reports, where they lie apart")
    make.add_argument("--views", choices=("frontal", "all"), default="frontal", help="(default: frontal)")
    make.add_argument("--exclude", metavar="FILE", help="text file with an image, study or patient to leave out a line")
    make.add_argument("--keep-empty", action="store_true", help="keep images whose report is empty")
    shard = commands.add_parser("shard", help="write a manifest's images and texts as shards for object storage")
    shard.add_argument("manifest", help="CSV or Parquet table with the columns image and text or texts")
    shard.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    shard.add_argument("--split", help="rows whose column split is this (default: all)")
    shard.add_argument("--size", type=int, default=224, help="side of the model's input in pixels (default: 224)")
    shard.add_argument("--per-shard", type=int, default=1024, metavar="N", help="images of a shard (default: 1024)")
    shard.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Check, make or write; returns the exit code (1: the check found what stops a run or makes its figures wrong)."""
    return {"check": _check, "manifest": _make, "shard": _shard}[args.data_command](args)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of images on a terminal's stderr; takes images done and in all."""
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from carzero.train.check import check_manifest

    with _bar() as progress:
        report = check_manifest(
            args.manifest, tokenizer=args.tokenizer, max_tokens=args.max_tokens, workers=args.workers,
            read_images=not args.no_images, progress=progress,
        )  # fmt: skip
    console = Console()
    facts = Table(title=str(args.manifest), show_header=False)
    for name, value in report.facts.items():
        facts.add_row(name, Text(value))
    console.print(facts)
    table = Table("looked for", "found", "for example")
    for finding in report.findings:
        word = "" if not finding.count else " (stops or spoils a run)" if finding.grave else " (worth knowing)"
        examples = Text("\n".join(finding.examples), overflow="fold")
        table.add_row(finding.what, f"{finding.count:,}{word}", examples)
    console.print(table)
    if args.report:
        try:
            report.rows.to_csv(args.report, index=False)
        except OSError as error:
            raise UserError(f"data check: --report {args.report} cannot be written: {error.strerror}.") from None
    print("sound" if report.sound else "not sound: mend the manifest before a run")
    return 0 if report.sound else 1


def _make(args: argparse.Namespace) -> int:
    from carzero.data.adapters import make_manifest, write_manifest

    exclude: list[str] = []
    if args.exclude:
        try:
            exclude = Path(args.exclude).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"data manifest: --exclude {args.exclude} cannot be read: {error.strerror}.") from None
    made = make_manifest(
        args.set, args.root, reports=args.reports, views=args.views, exclude=exclude, with_text=not args.keep_empty
    )
    write_manifest(made.table, Path(args.root), Path(args.out))
    columns = ", ".join(made.table.columns[:8]) + (", ..." if len(made.table.columns) > 8 else "")
    print(f"{args.out}: {len(made.table)} images; columns {columns}")
    for reason, count in made.left_out.items():
        print(f"left out: {count} images {reason}")
    return 0


def _shard(args: argparse.Namespace) -> int:
    from carzero.data.sharding import write_shards

    with _bar() as progress:
        made = write_shards(
            args.manifest, args.out, split=args.split, size=args.size, per_shard=args.per_shard, workers=args.workers,
            progress=progress,
        )  # fmt: skip
    print(
        f"{args.out}: {made.pairs} pairs with {made.images} images of {args.size} pixels in {made.shards} shards, "
        f"{made.bytes / 2**20:.1f} MiB"
    )
    return 0
