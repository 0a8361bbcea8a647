"""Where scores and labels come from: files, a model and images, or a model and drawn radiographs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from carzero.evaluate.benchmark import Benchmark, load_benchmark
from carzero.evaluate.joining import class_columns
from carzero.evaluate.tables import Labels, Predictions, read_labels, read_predictions
from carzero.prompts import prompt_set
from carzero.prompts.benchmarks import BENCHMARKS
from carzero.prompts.sets import PromptSet, load_prompts

if TYPE_CHECKING:
    from carzero.assess.scoring import Scores
    from carzero.assess.subject import Subject


@dataclass(frozen=True)
class Source:
    """Scores and labels, not yet joined.

    Args:
        title: what is measured, for the first line of tables.
        classes: those to use; empty: all that both have.
        benchmark: if it is one.
        subject, scores: of a model, for further checks.
    """

    title: str
    predictions: Predictions
    labels: Labels
    classes: tuple[str, ...] = ()
    benchmark: Benchmark | None = None
    subject: Subject | None = None
    scores: Scores | None = None


def predictions_source(args: argparse.Namespace) -> Source:
    """Scores of a file."""
    predictions = read_predictions(args.predictions)
    if not args.benchmark:
        return Source(f"{Path(args.predictions).name} against {Path(args.labels).name}", predictions,
                      read_labels(args.labels))  # fmt: skip
    benchmark = load_benchmark(args.benchmark)
    prompts = benchmark_prompts(benchmark)
    labels = _with_absent(benchmark, benchmark.read_labels(args.labels, args.list), prompts.classes)
    return Source(f"{benchmark.title}: {Path(args.predictions).name}", predictions, labels, benchmark=benchmark)


def model_source(args: argparse.Namespace, checks: Sequence[str]) -> Source | None:
    """Scores of a model for the images that labels name; None where they are another process's to measure."""
    from carzero.assess.subject import subject_of_files

    name = Path(args.weights).name
    benchmark = None
    if args.benchmark:
        benchmark = load_benchmark(args.benchmark)
        prompts = benchmark_prompts(benchmark)
        labels = _with_absent(benchmark, benchmark.read_labels(args.labels, args.list), prompts.classes)
        title = f"{benchmark.title}: {name}"
    else:
        labels = read_labels(args.labels)
        asked = [c.strip() for c in (args.classes or "").split(",") if c.strip()]
        prompts = (
            load_prompts(args.prompts) if args.prompts else PromptSet.from_findings(asked or class_columns(labels))
        )
        title = f"{name} on {Path(args.labels).name}"
    subject = subject_of_files(args.images, labels, prompts)
    return _scored(args, subject, title, checks, benchmark)


def drawn_source(args: argparse.Namespace, checks: Sequence[str]) -> Source | None:
    """Scores of a model for drawn radiographs."""
    from carzero.assess.subject import drawn_subject

    subject = drawn_subject(args.drawn, args.seed)
    return _scored(
        args, subject, f"{args.drawn} drawn radiographs, seed {args.seed}: {Path(args.weights).name}", checks
    )


def benchmark_prompts(benchmark: Benchmark) -> PromptSet:
    """A benchmark's prompts: by their name, or of the file it names."""
    return prompt_set(benchmark.prompts) if benchmark.prompts in BENCHMARKS else load_prompts(benchmark.prompts)


def _scored(
    args: argparse.Namespace, subject: Subject, title: str, checks: Sequence[str], benchmark: Benchmark | None = None
) -> Source | None:
    from carzero.assess.scoring import InParts, predictions, score
    from carzero.assess.weaknesses import prompts_of
    from carzero.models.checkpoint import load
    from carzero.zeroshot.command import join_parts

    ranks = join_parts(args)
    parts = None if ranks is None else InParts(Path(args.parts), args.part_size, args.weights, ranks)

    sets = [subject.prompts, *(prompts for check in checks for prompts in prompts_of(check, subject))]
    model = load(args.weights, tokenizer=args.tokenizer)
    scores = score(model, subject, sets, batch_size=args.batch_size, device=args.device, parts=parts)
    if scores is None:
        return None
    pool = benchmark.pool if benchmark else "mean"
    found = predictions(subject, scores, pool)
    return Source(title, found, subject.labels, subject.prompts.classes, benchmark, subject, scores)


def _with_absent(benchmark: Benchmark, labels: Labels, known: Sequence[str]) -> Labels:
    """Labels with a column of zeros for each known class that no image has, where the file lists what it finds."""
    absent = [name for name in known if labels.classes is not None and name not in labels.classes]
    if benchmark.classes or not absent:
        return labels
    zeros = pd.DataFrame(0, index=labels.table.index, columns=absent)
    table = pd.concat([labels.table, zeros], axis=1)
    return replace(labels, table=table, classes=(*(labels.classes or ()), *absent))
