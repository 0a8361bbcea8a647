"""What is counted once: images, studies or patients; and the groups that images fall into."""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from carzero.errors import UserError
from carzero.evaluate.tables import Sample

Unit = Literal["image", "study", "patient"]
Pool = Literal["mean", "max"]
#: Ages, in years, at which an age column is cut; other columns of many numbers are cut at their quartiles.
AGE_CUTS = (18, 40, 60, 80)
MANY_NUMBERS = 10
UNKNOWN = "(unknown)"


def pool_units(sample: Sample, unit: Unit, pool: Pool = "mean") -> Sample:
    """One row a study or patient instead of one an image.

    Args:
        sample: of images.
        unit: ``image`` changes nothing.
        pool: how its images' scores become one. A class is present where it is in any of the images, and ignored where
            no image has a label. Other columns keep the value that all images share, or none.

    Raises:
        UserError: unknown unit or pool, or a sample that does not name its studies or patients.
    """
    if unit not in get_args(Unit) or pool not in get_args(Pool):
        raise UserError(f"pool_units: unit must be image, study or patient and pool mean or max, got {unit}, {pool}.")
    if unit == "image":
        return sample
    names = sample.patient if unit == "patient" else study_names(sample)
    if names is None:
        raise UserError(f"Figures by {unit} need a column {unit!r} in the labels.")
    keys, first, member = np.unique(names, return_index=True, return_inverse=True)
    scores = pd.DataFrame(sample.scores).groupby(member).agg(pool).to_numpy()
    # max leaves out NaN, as it should
    labels = pd.DataFrame(sample.labels).groupby(member).max().to_numpy()
    columns = sample.columns.iloc[first].reset_index(drop=True)
    if len(columns.columns):
        several = sample.columns.reset_index(drop=True).groupby(member).nunique(dropna=False) > 1
        columns = columns.mask(several.reset_index(drop=True))
    return Sample(
        [str(k) for k in keys], sample.classes, labels, scores,
        None if sample.patient is None else sample.patient[first],
        None if sample.study is None else sample.study[first], columns,
    )  # fmt: skip


def study_names(sample: Sample) -> NDArray | None:
    """Names of the studies, made unique by those of the patients where both are known."""
    if sample.study is None or sample.patient is None:
        return sample.study
    return np.array([f"{p}/{s}" for p, s in zip(sample.patient, sample.study)])


def resampling_units(sample: Sample) -> tuple[NDArray, Unit, str]:
    """What a bootstrap draws: patients where they are known, else studies, else images; and why."""
    if sample.patient is not None:
        return sample.patient, "patient", "patients are named by the labels"
    studies = study_names(sample)
    if studies is not None:
        return studies, "study", "no patient is named; images of a patient's several studies count as independent"
    return np.array(sample.images), "image", "no patient or study is named; all images count as independent"


def group_names(sample: Sample, column: str) -> list[str]:
    """The group of each row by a column: its values, bands of age, or quartiles of many numbers."""
    values = sample.columns[column]
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() == values.notna().sum() and numbers.nunique() > MANY_NUMBERS:
        known = numbers[numbers.notna()]
        cuts = AGE_CUTS if column.lower() == "age" else tuple(np.unique(np.quantile(known, [0.25, 0.5, 0.75])))
        names = [f"< {cuts[0]:g}", *(f"{a:g} to < {b:g}" for a, b in itertools.pairwise(cuts)), f">= {cuts[-1]:g}"]
        return [UNKNOWN if np.isnan(v) else names[int(np.searchsorted(cuts, v, side="right"))] for v in numbers]
    return [UNKNOWN if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in values]
