"""``carzero verify``: whether a downloaded checkpoint gives the figures that were published for it."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.assess.command import model_arguments
from carzero.errors import UserError

if TYPE_CHECKING:
    from carzero.evaluate.benchmark import Benchmark
    from carzero.evaluate.report import Report


@dataclass(frozen=True)
class Line:
    """One comparison.

    Args:
        what: a figure, or the number of images.
        expected, measured: None where it is not known.
        passed: whether they agree.
        why: source, and tolerance.
    """

    what: str
    expected: float
    measured: float | None
    passed: bool
    why: str


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the same as --weights")
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="a public benchmark, or a .yaml file")
    parser.add_argument("--labels", required=True, metavar="FILE", help="its official label file")
    parser.add_argument("--list", metavar="FILE", help="the images to keep, a name a line")
    model_arguments(parser)
    parser.add_argument("--predictions", metavar="CSV", help="scores made before, instead of a model")
    parser.add_argument("--reference", default="CARZero", metavar="NAME", help="whose figures (default: CARZero)")
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest difference (default: 0.005)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Measure and compare; returns the exit code (1: a figure differs)."""
    from carzero.assess import command
    from carzero.evaluate.benchmark import TOLERANCE, load_benchmark

    if args.model and args.weights:
        raise UserError("Name the model once: MODEL or --weights.")
    benchmark = load_benchmark(args.benchmark)
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    if not 0 < tolerance < 1:
        raise UserError(f"--tolerance must be between 0 and 1, got {tolerance}.")
    names = sorted({r.model for r in benchmark.references})
    if args.reference not in names:
        raise UserError(
            f"{benchmark.name} has no published figure of {args.reference!r}; "
            f"{'it has those of ' + ', '.join(names) if names else 'it has none at all'}."
        )
    parser = argparse.ArgumentParser()
    command.configure(parser)
    own = parser.parse_args([])
    for name in ("benchmark", "labels", "list", "tokenizer", "images", "batch_size", "device", "predictions",
                 "parts", "part_size"):  # fmt: skip
        setattr(own, name, getattr(args, name))
    own.weights = args.weights or args.model
    command.check_options(own)
    found = command.measure(own)
    if found is None:
        return 0
    report = found[0]
    lines = compare_with_published(report, benchmark, args.reference, tolerance)
    passed = all(line.passed for line in lines)
    if args.json:
        print(json.dumps({"benchmark": benchmark.name, "passed": passed, "lines": [vars(line) for line in lines]}))
        return 0 if passed else 1
    print(f"{benchmark.title}: {Path(own.weights or own.predictions).name}")
    for line in lines:
        measured = "not defined" if line.measured is None else f"{line.measured:.5g}"
        verdict = "pass" if line.passed else "FAIL"
        print(f"{verdict}  {line.what}: expected {line.expected:.5g}, measured {measured} ({line.why})")
    print("All agree." if passed else "It is another model, other images or other labels than the published ones.")
    return 0 if passed else 1


def compare_with_published(report: Report, benchmark: Benchmark, model: str, tolerance: float) -> list[Line]:
    """Each published figure of `model`, and the number of images where the benchmark states one."""
    lines = []
    if benchmark.images is not None:
        lines.append(Line("images", benchmark.images, report.n_images, benchmark.images == report.n_images, "exactly"))
    for row in report.as_json()["references"]:
        if row["model"] != model:
            continue
        ours = row["ours"]
        agree = ours is not None and math.isclose(ours, row["value"], rel_tol=0, abs_tol=tolerance)
        lines.append(Line(row["figure"], row["value"], ours, agree, f"within {tolerance:g}; {row['source']}"))
    return lines
