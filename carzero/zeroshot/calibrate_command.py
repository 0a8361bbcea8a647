"""``carzero calibrate``: how scores lie in a reference set and, with labels, what they mean as probabilities."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carzero.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from carzero.zeroshot.calibration import Calibration
    from carzero.zeroshot.classify import ZeroShotClassifier


def configure(parser: argparse.ArgumentParser) -> None:
    from carzero.zeroshot.command import configure_scoring

    configure_scoring(parser)
    parser.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="fit probabilities too: a row an image, a column of 0, 1 or nothing per class, optionally patient",
    )
    parser.add_argument(
        "--method", choices=("platt", "isotonic"), default="platt", help="isotonic needs hundreds of positives"
    )
    parser.add_argument("--out", metavar="FILE.json", help="file to write (default: scores.json in the model's folder)")


def run(args: argparse.Namespace) -> int:
    """Score the reference set and write; returns the exit code (1: an image could not be scored)."""
    from carzero.zeroshot.command import listed_images, make_classifier, predict, read_prompts, report
    from carzero.zeroshot.reference import FILE, ScoreReference

    if args.out is None and not Path(args.weights).is_dir():
        raise UserError(f"--weights {args.weights} is no folder, so name the file to write with --out FILE.json.")
    out = Path(args.weights) / FILE if args.out is None else Path(args.out)
    if not out.parent.is_dir():
        raise UserError(f"--out {out} cannot be written: there is no folder {out.parent}.")
    prompts = read_prompts(args)
    images = listed_images(args)
    classifier = make_classifier(args, prompts)
    table = predict(classifier, images)
    calibrations = {} if args.labels is None else _calibrate(classifier, table, args)
    ScoreReference.of(classifier, table, calibrations).save(out)
    print(f"{out}: reference of {len(table)} images x {len(prompts)} classes, {len(calibrations)} calibrated.")
    for name, one in calibrations.items():
        print(
            f"  {name}: {one.positives} of {one.n} images, {one.units} patients; on patients not fitted on: Brier "
            f"score {one.brier:.3f} ({one.brier_constant:.3f} for a constant), calibration error {one.error:.3f}"
        )
        if one.brier >= one.brier_constant:
            print(f"carzero calibrate: warning: {name}: no better than a constant probability.", file=sys.stderr)
    return report(classifier, out, "calibrate")


def _calibrate(classifier: ZeroShotClassifier, table: pd.DataFrame, args: argparse.Namespace) -> dict[str, Calibration]:
    from carzero.evaluate.joining import join
    from carzero.evaluate.tables import Predictions, read_labels
    from carzero.zeroshot.calibration import fit_calibration

    path = args.labels
    labels = read_labels(path)
    # an image that could not be scored is in the table of failures; its label is nothing to complain of
    unscored = {Path(name).name for name in classifier.failures["image"]}
    kept = np.array([Path(name.replace("\\", "/")).name not in unscored for name in labels.images])
    labels = dataclasses.replace(
        labels,
        images=[name for name, keep in zip(labels.images, kept) if keep],
        table=labels.table[kept].reset_index(drop=True),
        patient=None if labels.patient is None else labels.patient[kept],
        study=None if labels.study is None else labels.study[kept],
    )
    classes = tuple(name for name in table.columns if name != "image" and name in labels.table.columns)
    if not classes:
        raise UserError(
            f"--labels {path} has no column of any of the classes; it has {', '.join(labels.table.columns)}."
        )
    scores = Predictions("the images given", table["image"].tolist(), classes, table[list(classes)].to_numpy(float))
    sample = join(scores, labels, classes=classes)
    fitted = {}
    for number, name in enumerate(sample.classes):
        try:
            fitted[name] = fit_calibration(
                sample.scores[:, number], sample.labels[:, number], sample.patient, method=args.method, name=name
            )
        except UserError as error:
            # one rare class does not keep the others from being calibrated
            print(f"carzero calibrate: {error}", file=sys.stderr)
    if not fitted:
        raise UserError(f"None of the {len(classes)} classes of {path} could be calibrated.")
    return fitted
