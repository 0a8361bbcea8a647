"""``carzero evaluate``: figures with intervals from predictions and labels, or from a model and images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.errors import UserError
from carzero.zeroshot.command import configure_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from carzero.evaluate.report import Report
    from carzero.evaluate.tables import Sample

CHECKS = ("negation", "normal", "wording", "laterality")


def configure(parser: argparse.ArgumentParser) -> None:
    given = parser.add_argument_group("what is measured")
    given.add_argument("--predictions", metavar="CSV", help="scores: first column the image, then a column per class")
    given.add_argument(
        "--labels", metavar="FILE", help="CSV: image, 0/1/-1/empty per class, optionally patient, study, sex, age, "
        "view; with --benchmark its official label file",
    )  # fmt: skip
    given.add_argument("--benchmark", metavar="NAME", help="a public benchmark, or a .yaml file of the same form")
    given.add_argument("--list", metavar="FILE", help="with --benchmark: the images to keep, a name a line")
    model_arguments(given)
    given.add_argument("--prompts", metavar="FILE", help="with --weights: prompt file, as `carzero classify` takes")
    given.add_argument("--drawn", type=int, metavar="N", help="with --weights: measure on N drawn radiographs")
    how = parser.add_argument_group("how")
    how.add_argument("--classes", metavar="A,B", help="the classes to use (default: all)")
    how.add_argument("--uncertain", choices=("ignore", "positive", "negative"), default="ignore",
                     help="what a label of -1 counts as (default: ignore)")  # fmt: skip
    how.add_argument("--unit", choices=("image", "study", "patient"), default="image", help="a row (default: image)")
    how.add_argument("--pool", choices=("mean", "max"), default="mean", help="of a unit's images (default: mean)")
    how.add_argument("--by", metavar="COL,COL", default="", help="columns whose groups of images are measured apart")
    how.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    how.add_argument("--seed", type=int, default=0, help="of the bootstrap and of drawings (default: 0)")
    how.add_argument("--rarest", type=int, default=100, metavar="K", help="classes of that group (default: 100)")
    cut = parser.add_argument_group("at a threshold")
    cut.add_argument("--operating-point", metavar="RULE",
                     help="youden, f1, mcc, sensitivity=0.9, specificity=0.9 or threshold=0")  # fmt: skip
    cut.add_argument("--tune-predictions", metavar="CSV", help="scores of the split that fixes the thresholds")
    cut.add_argument("--tune-labels", metavar="CSV", help="labels of that split")
    cut.add_argument("--prevalence", metavar="P | A=P,B=P", help="state PPV and NPV at this prevalence too")
    other = parser.add_argument_group("against another model")
    other.add_argument("--compare", metavar="CSV", help="scores of the other model for the same images")
    other.add_argument("--correction", choices=("holm", "fdr_bh", "bonferroni"), default="holm",
                       help="of the classes' p values (default: holm)")  # fmt: skip
    weak = parser.add_argument_group("known weaknesses (with --weights)")
    weak.add_argument("--negation", action="store_true", help="each prompt against its denial")
    weak.add_argument("--normal", action="store_true", help="images without a finding against the others")
    weak.add_argument("--wording", action="store_true", help="how figures change with the wording")
    weak.add_argument("--laterality", action="store_true", help="left against right")
    parser.add_argument("--out", metavar="DIR", help="write JSON, CSV, Markdown, LaTeX and a page there")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def model_arguments(parser: argparse._ActionsContainer) -> None:
    """What names a model and its images; `carzero verify` takes them too."""
    parser.add_argument("--weights", help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument("--images", metavar="FOLDER", help="with --weights: where the labels' images are")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where present)")
    configure_parts(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write; returns the exit code."""
    try:
        import jinja2  # noqa: F401
        import scipy  # noqa: F401
        import statsmodels  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'carzero[evaluate]'.") from None
    check_options(args)
    measured = measure(args)
    if measured is None:
        return 0
    report, sample, drawn = measured
    written = []
    if args.out:
        from carzero.evaluate.page import write_page
        from carzero.evaluate.report_files import write_report

        written = write_report(report, args.out)
        page = Path(args.out) / "index.html"
        write_page(
            report, sample, page,
            images="All radiographs are drawn, none is of a person." if drawn
            else "These are figures of the images that were given; no image is shown.",
        )  # fmt: skip
        written.append(page)
    if args.json:
        print(json.dumps(report.as_json(), allow_nan=False))
        return 0
    print(report.title)
    for sentence in report.about():
        print(sentence)
    for heading, table in report.tables().items():
        if heading not in ("Classes", "At a threshold") or len(table) <= 30:
            print(f"\n{heading}\n{table.to_string(index=False)}")
    for path in written:
        print(f"wrote {path}")
    print("Not a medical device.")
    return 0


def measure(args: argparse.Namespace) -> tuple[Report, Sample, bool] | None:
    """The report, the sample it is of, and whether its images are drawn.

    None in processes that share the scoring with others, but for the first.
    """
    import numpy as np

    from carzero.evaluate.compare import compare
    from carzero.evaluate.evaluation import evaluate
    from carzero.evaluate.joining import join
    from carzero.evaluate.report import Report
    from carzero.evaluate.tables import read_predictions
    from carzero.evaluate.units import pool_units

    classes, by = _listed(args.classes), _listed(args.by)
    source = _source(args)
    if source is None:
        return None
    sample = join(source.predictions, source.labels, classes=source.classes or classes, uncertain=args.uncertain, by=by)
    checks = {}
    if source.subject is not None:
        from carzero.assess.weaknesses import run_check

        for check in _asked(args):
            checks[check] = run_check(
                check, source.subject, source.scores, sample, resamples=args.resamples, seed=args.seed
            )
    n_images, benchmark, notes = len(sample.images), source.benchmark, []
    if benchmark is not None and benchmark.subset == "tail":
        rare = np.flatnonzero((sample.labels == 1).sum(0) <= 10)
        if not len(rare):
            raise UserError(f"No class of {benchmark.name} has 10 or fewer positives in these labels.")
        sample = _only(sample, rare)
    other = None
    if args.compare:
        # like the first predictions in everything but scores
        theirs = read_predictions(args.compare)
        other = join(theirs, source.labels, classes=sample.classes, uncertain=args.uncertain, by=by)
        other = pool_units(other, args.unit, args.pool)
    sample = pool_units(sample, args.unit, args.pool)
    thresholds, rule = _thresholds(args, sample)
    evaluation = evaluate(
        sample, resamples=args.resamples, seed=args.seed, rarest=args.rarest, by=by, thresholds=thresholds,
        prevalence=_prevalence(args, sample),
    )  # fmt: skip
    if benchmark is not None:
        notes += [sentence] if (sentence := benchmark.other_images(n_images)) else []
    notes += [
        f"{column}: means over {len(s.classes)} classes that all compared groups have; * is not compared (few rows)."
        for column, s in evaluation.splits.items()
    ]
    comparison = None
    if other is not None:
        found = compare(sample, other, resamples=args.resamples, seed=args.seed, correction=args.correction)
        comparison = (args.compare, found)
        notes.append(
            f"Differences: these scores less those of {args.compare}; p values corrected by {args.correction}."
        )
    settings = {k: v for k, v in vars(args).items() if k != "command" and v not in (None, False, "")}
    report = Report(
        source.title, evaluation, n_images, args.unit, benchmark, rule, comparison, checks, tuple(notes), settings
    )
    return report, sample, source.subject is not None and source.subject.drawn


def _source(args: argparse.Namespace):
    from carzero.assess.source import drawn_source, model_source, predictions_source

    if args.drawn is not None:
        return drawn_source(args, _asked(args))
    if args.weights:
        return model_source(args, _asked(args))
    return predictions_source(args)


def check_options(args: argparse.Namespace) -> None:
    """Raise where options contradict each other or one is missing."""
    if bool(args.predictions) == bool(args.weights):
        raise UserError("Give either --predictions or --weights.")
    if args.drawn is not None and (not args.weights or args.labels or args.benchmark or args.images or args.prompts):
        raise UserError("--drawn goes with --weights, and brings its own images, labels and prompts.")
    if args.drawn is None and not args.labels:
        raise UserError("--labels is needed (only --drawn has its own).")
    if args.weights and args.drawn is None and not args.images:
        raise UserError("--weights needs the images: give their folder with --images.")
    if args.parts and not args.images:
        raise UserError("--parts shares the scoring of images in files: it goes with --weights and --images.")
    if args.predictions and (args.images or args.prompts or _asked(args)):
        raise UserError("--images, --prompts and the checks for known weaknesses need a model: --weights.")
    if args.benchmark and args.prompts:
        raise UserError("--benchmark brings its own prompts: leave --prompts out.")
    if args.list and not args.benchmark:
        raise UserError("--list goes with --benchmark.")
    if bool(args.tune_predictions) != bool(args.tune_labels):
        raise UserError("--tune-predictions and --tune-labels go together.")
    if (args.tune_labels or args.prevalence) and not args.operating_point:
        raise UserError("--tune-predictions, --tune-labels and --prevalence go with --operating-point.")
    if args.resamples < 1 or args.rarest < 1:
        raise UserError("--resamples and --rarest must be at least 1.")


def _asked(args: argparse.Namespace) -> list[str]:
    return [check for check in CHECKS if getattr(args, check)]


def _only(sample: Sample, columns: NDArray[np.intp]) -> Sample:
    from dataclasses import replace

    return replace(
        sample, classes=tuple(sample.classes[c] for c in columns), labels=sample.labels[:, columns],
        scores=sample.scores[:, columns],
    )  # fmt: skip


def _thresholds(args: argparse.Namespace, sample: Sample) -> tuple[NDArray[np.float64] | None, str | None]:
    """One threshold a class, and how they were chosen."""
    import numpy as np

    from carzero.evaluate.joining import join
    from carzero.evaluate.operating import Rule, choose_threshold
    from carzero.evaluate.tables import read_labels, read_predictions
    from carzero.evaluate.units import pool_units

    if not args.operating_point:
        return None, None
    rule = Rule.parse(args.operating_point)
    tuning, where = sample, "chosen on these very images, which flatters it"
    if args.tune_labels:
        tuning = join(
            read_predictions(args.tune_predictions), read_labels(args.tune_labels), classes=sample.classes,
            uncertain=args.uncertain,
        )  # fmt: skip
        both = set(tuning.images) & set(sample.images)
        if both:
            raise UserError(f"{len(both)} images are in the split that fixes the thresholds and in the one measured.")
        tuning = pool_units(tuning, args.unit, args.pool)
        where = f"chosen on {len(tuning.images):,} others ({args.tune_labels})"
    elif rule.kind == "threshold":
        where = "as given"
    known = ~np.isnan(tuning.labels)
    chosen = [choose_threshold(tuning.labels[k, c] == 1, tuning.scores[k, c], rule) for c, k in enumerate(known.T)]
    stated = f"; stated prevalence {args.prevalence}" if args.prevalence else ""
    return np.array(chosen), f"{rule}, {where}{stated}"


def _prevalence(args: argparse.Namespace, sample: Sample) -> Mapping[int, float] | None:
    """Class number -> stated prevalence."""
    if not args.prevalence:
        return None
    stated: dict[int, float] = {}
    for part in _listed(args.prevalence):
        name, equals, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not 0 < value < 1 or (equals and name not in sample.classes):
            raise UserError(f"--prevalence takes 0.1 for all classes or CLASS=0.1,...; {part!r} is neither.")
        stated |= {c: value for c, known in enumerate(sample.classes) if known == name or not equals}
    return stated


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
