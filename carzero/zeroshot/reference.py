"""What a logit means: where it lies among those of a reference set, and how often such images have the finding."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from carzero.errors import UserError
from carzero.zeroshot.calibration import Calibration

if TYPE_CHECKING:
    from carzero.models.carzero import CARZero
    from carzero.zeroshot.classify import ZeroShotClassifier

#: Name of the file in a model's folder.
FILE = "scores.json"
#: Scores kept of each class: those of a larger set are thinned out to evenly spaced quantiles.
KNOTS = 1001


@dataclass(frozen=True)
class ScoreReference:
    """Logits of a reference set, for one model and its prompts, and calibrations where labels were given.

    Args:
        model: `fingerprint` of the weights.
        pool: of several prompts of a class.
        prompts: class -> its prompts.
        scores: class -> its logits on the reference set, ascending, at most `KNOTS`.
        images: size of the reference set.
        calibrations: class -> calibration, for the classes that have one.
    """

    model: str
    pool: str
    prompts: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, tuple[float, ...]]
    images: int
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)

    @classmethod
    def of(
        cls, classifier: ZeroShotClassifier, table: pd.DataFrame, calibrations: Mapping[str, Calibration] | None = None
    ) -> ScoreReference:
        """From what `classifier.predict` returned for the reference set.

        Raises:
            UserError: fewer than two images.
        """
        if len(table) < 2:
            raise UserError(f"A reference set needs two images or more, got {len(table)} that could be scored.")
        known = dict(zip(classifier.prompts.classes, classifier.prompts.prompts))
        scores = {name: thinned(table[name].to_numpy()) for name in known}
        return cls(fingerprint(classifier.model), classifier.pool, known, scores, len(table), calibrations or {})

    def check(self, classifier: ZeroShotClassifier) -> None:
        """Raise a `UserError` where a classifier's logits are not those of this reference: other weights or prompts."""
        if fingerprint(classifier.model) != self.model:
            raise UserError(
                "The reference of scores belongs to other weights than these: make it again with `carzero calibrate`."
            )
        if classifier.pool != self.pool:
            raise UserError(f"The reference of scores was made with --pool {self.pool}, not {classifier.pool}.")
        for name, texts in zip(classifier.prompts.classes, classifier.prompts.prompts):
            if name not in self.prompts:
                known = ", ".join(self.prompts)
                raise UserError(f"The reference of scores has no class {name!r}; it has {known}.")
            if tuple(self.prompts[name]) != tuple(texts):
                raise UserError(
                    f"The reference of scores asked for {name!r} with other prompts: {list(self.prompts[name])}, not "
                    f"{list(texts)}."
                )

    def quantile(self, name: str, scores: ArrayLike) -> NDArray[np.float64]:
        """Share of the reference set that scores lower for a class, equal scores counting half: ``[N] -> [N]`` in 0..1.

        Equivalent to ``scipy.stats.percentileofscore(reference, score, kind="mean") / 100`` up to `KNOTS` images.
        """
        known = np.asarray(self.scores[name], np.float32)
        values = np.asarray(scores, np.float32)
        return (np.searchsorted(known, values) + np.searchsorted(known, values, side="right")) / (2 * len(known))

    def probability(self, name: str, scores: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities of a class: ``[N] -> [N]``.

        Raises:
            UserError: the class has no calibration.
        """
        if name not in self.calibrations:
            raise UserError(
                f"There is no calibration of {name!r}: make one with `carzero calibrate --labels FILE`, or ask for "
                "quantiles, which need no labels."
            )
        return self.calibrations[name](scores)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, in one step."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"The reference of scores {path} cannot be written: {error.strerror}.") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreReference:
        """Read what `save` wrote.

        Raises:
            UserError: it is not there, or not such a file.
        """
        path = Path(path)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            calibrations = {
                name: Calibration(**{**one, "knots": tuple(map(tuple, one["knots"]))})
                for name, one in stored.pop("calibrations").items()
            }
            reference = cls(calibrations=calibrations, **{name: _tuples(value) for name, value in stored.items()})
            if set(reference.scores) != set(reference.prompts) or not set(calibrations) <= set(reference.scores):
                raise ValueError("classes differ")
            return reference
        except FileNotFoundError:
            raise UserError(
                f"There is no reference of scores {path}: make one with `carzero calibrate IMAGES --weights FOLDER`."
            ) from None
        except OSError as error:
            raise UserError(f"The reference of scores {path} cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"The file {path} is not a reference of scores as `carzero calibrate` writes it.") from None


def thinned(scores: ArrayLike) -> tuple[float, ...]:
    """Scores in ascending order, or `KNOTS` evenly spaced ones of them where there are more."""
    ordered = np.sort(np.asarray(scores, np.float32))
    if len(ordered) > KNOTS:
        ordered = ordered[np.linspace(0, len(ordered) - 1, KNOTS).round().astype(int)]
    return tuple(ordered.tolist())


def fingerprint(model: CARZero) -> str:
    """A short name of the weights that changes with any training step: a hash over the ends of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for part in (flat[:256], flat[-256:]):
            digest.update(part.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tuples(value: Any) -> Any:
    """JSON's lists inside a mapping as tuples."""
    return {name: tuple(part) for name, part in value.items()} if isinstance(value, dict) else value
