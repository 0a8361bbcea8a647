"""Time and memory of an evaluation with 1,000 patient-level resamples, at the sizes of public benchmarks.

Usage::

    python benchmarks/evaluate_bootstrap.py

Scores and labels are made up; the share of positives of a class runs from 30 % to 0.03 %, as findings do. One line a
size: seconds by the clock, seconds of processor time over all threads, and memory beyond the labels and scores. Before
a time counts, the point figures must equal scikit-learn's.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from carzero.evaluate.evaluation import evaluate
from carzero.evaluate.tables import Sample

#: name, images, classes, patients (None: each image its own)
SIZES = (("ChestX-ray14", 22_433, 14, 6_187), ("PadChest", 39_053, 192, None))


def made_up(images: int, classes: int, patients: int | None) -> Sample:
    """Scores that separate positives by one standard deviation."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, classes)) < np.geomspace(0.3, 3e-4, classes)).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    patient = None if patients is None else rng.integers(0, patients, images).astype(str)
    names = tuple(f"class {c}" for c in range(classes))
    return Sample([f"{i}.png" for i in range(images)], names, labels, scores, patient)


def main() -> None:
    print("| | images x classes | drawn | s | s of processor time | extra MiB |\n|---|---|---|---:|---:|---:|")
    for name, images, classes, patients in SIZES:
        sample = made_up(images, classes, patients)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter(), time.process_time()
        found = evaluate(sample)
        wall, work = time.perf_counter() - start[0], time.process_time() - start[1]
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        for c in (0, classes - 1):
            difference = found.per_class[sample.classes[c]].auroc.value - roc_auc_score(
                sample.labels[:, c], sample.scores[:, c]
            )
            if abs(difference) > 1e-12:
                raise SystemExit(f"{name}, class {c}: the AUROC differs from scikit-learn's by {difference:g}.")
        unit, count, _ = found.drawn
        print(
            f"| {name} | {images:,} x {classes} | {count:,} {unit}s | {wall:.1f} | {work:.1f} | {extra:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
