"""What stands beside the logits where it is asked for: quantiles, calibrated probabilities, the guard's verdict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from carzero.errors import UserError
from carzero.zeroshot.reference import FILE, ScoreReference

if TYPE_CHECKING:
    from carzero.zeroshot.classify import ZeroShotClassifier


def find_reference(
    classifier: ZeroShotClassifier, weights: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> ScoreReference:
    """The reference of scores of a model's folder, or of a file; checked against the classifier.

    Raises:
        UserError: there is none, or it belongs to other weights, prompts or pooling.
    """
    reference = ScoreReference.load(Path(weights) / FILE if path is None else path)
    reference.check(classifier)
    return reference


def add_columns(
    table: pd.DataFrame, columns: Sequence[str], verdicts: pd.DataFrame, reference: ScoreReference | None
) -> pd.DataFrame:
    """The table of scores with more columns, in this order after the logits.

    Args:
        table: of `ZeroShotClassifier.predict`.
        columns: ``"quantile"``: ``<class> quantile``, the share of the reference set that scores lower;
            ``"probability"``: ``<class> probability``, for classes that have a calibration; ``"guard"``: what an image
            that does not look like an upright frontal chest radiograph looks like, empty for others.
        verdicts: `ZeroShotClassifier.verdicts` of the same prediction.
        reference: needed for the first two.

    Raises:
        UserError: a column of that name is there already, or no class has a calibration.
    """
    classes = [name for name in table.columns if name != "image"]
    added: dict[str, object] = {}
    if "quantile" in columns and reference is not None:
        added |= {f"{name} quantile": reference.quantile(name, table[name]) for name in classes}
    if "probability" in columns and reference is not None:
        calibrated = [name for name in classes if name in reference.calibrations]
        if not calibrated:
            # the sentence of the first class says the way out
            reference.probability(classes[0], [])
        added |= {f"{name} probability": reference.probability(name, table[name]) for name in calibrated}
    if "guard" in columns:
        added["guard"] = verdicts["looks"].to_numpy()
    taken = [name for name in added if name in table.columns]
    if taken:
        raise UserError(f"The class {taken[0]!r} has the name of a column that was asked for: rename the class.")
    return pd.concat([table, pd.DataFrame(added, index=table.index)], axis=1)
