"""Samples with scores and labels drawn at random, for the tests of figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from carzero.evaluate.tables import Sample


def drawn_sample(seed=0, n=300, prevalence=(0.5, 0.2, 0.1), patients=120, missing=0.0, digits=1):
    """Noisy scores with ties, for labels of a given prevalence."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(prevalence))) < prevalence).astype(float)
    scores = np.round(rng.normal(size=labels.shape) + labels, digits)
    labels[rng.random(labels.shape) < missing] = np.nan
    names = tuple(f"class {c}" for c in range(len(prevalence)))
    columns = pd.DataFrame({"sex": rng.choice(["F", "M"], n), "age": rng.integers(1, 95, n)})
    patient = None if patients is None else rng.integers(0, patients, n).astype(str)
    return Sample([f"{i}.png" for i in range(n)], names, labels, scores, patient, columns=columns)
