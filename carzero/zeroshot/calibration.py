"""From logits to probabilities, where labels are given: Platt's sigmoid or isotonic regression, with their error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carzero.errors import UserError

Method = Literal["platt", "isotonic"]
FOLDS, BINS = 5, 10
#: Fewest positives and fewest negatives that a calibration is fitted on.
LEAST = 10


@dataclass(frozen=True)
class Calibration:
    """Probability of one class as a function of its logit, and how far off it was on patients it had not seen.

    *Equivalent to* ``1 / (1 + exp(-(slope * s + offset)))`` for `platt`, with the knots (offset, slope); for `isotonic`
    to the line through the knots, constant beyond the first and the last.

    Args:
        method: ``"platt"`` or ``"isotonic"``.
        knots: see above; pairs for `isotonic`.
        n, positives, units: images it was fitted on, those with the finding, and patients (images if none are known).
        brier: mean squared error of the probability, each image's by a fit on other patients (5 folds).
        brier_constant: the same of always saying the share of positives: what a useful probability stays below.
        error: expected calibration error of the same probabilities: mean distance between the mean probability and the
            share of positives, over 10 bins of equally many images.
    """

    method: Method
    knots: tuple[tuple[float, float], ...]
    n: int
    positives: int
    units: int
    brier: float
    brier_constant: float
    error: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of N logits; they hold where the share of positives is as in the images fitted on."""
        return _apply(self.method, self.knots, np.asarray(scores, np.float64))


def fit_calibration(
    scores: ArrayLike,
    labels: ArrayLike,
    units: ArrayLike | None = None,
    *,
    method: Method = "platt",
    name: str = "the class",
    seed: int = 0,
) -> Calibration:
    """Fit the calibration of one class and measure its error by cross-validation over units.

    Args:
        scores: ``[N]`` logits.
        labels: ``[N]`` of 0 and 1; NaN leaves an image out.
        units: ``[N]`` patients, which stay together in a fold; None: every image is its own.
        method: ``"platt"`` has two figures and needs few positives; ``"isotonic"`` any rising curve, for hundreds.
        name: of the class, in messages.
        seed: of the folds.

    Raises:
        UserError: fewer than 10 positives or negatives, or too few patients with either; or scikit-learn is missing.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), with his smoothed targets.
    """
    if method not in get_args(Method):
        raise UserError(f"fit_calibration: method must be platt or isotonic, got {method!r}.")
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError:
        raise UserError("A calibration is fitted with scikit-learn: pip install 'carzero[train]'.") from None
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    group = np.arange(len(s)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    if not s.shape == y.shape == group.shape or s.ndim != 1:
        raise ValueError(
            f"fit_calibration: scores, labels and units must all be [N], got {s.shape}, {y.shape} and {group.shape}."
        )
    known = ~np.isnan(y)
    s, y, group = s[known], y[known], group[known]
    if not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise ValueError("fit_calibration: labels must be 0, 1 or NaN, and scores finite.")
    positives, negatives = int(y.sum()), int(len(y) - y.sum())
    if min(positives, negatives) < LEAST:
        raise UserError(
            f"A calibration of {name!r} needs {LEAST} images with it and {LEAST} without, got {positives} and "
            f"{negatives}."
        )
    held = min(len(np.unique(group[y == value])) for value in (0, 1))
    if held < FOLDS:
        raise UserError(
            f"A calibration of {name!r} needs {FOLDS} patients with it and {FOLDS} without, got {held} of one kind."
        )
    probability = np.empty(len(s))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for rest, part in folds.split(s, y, group):
        probability[part] = _apply(method, _fit(method, s[rest], y[rest]), s[part])
    share = positives / len(y)
    return Calibration(
        method, _fit(method, s, y), len(y), positives, len(np.unique(group)),
        brier=float(np.square(probability - y).mean()),
        brier_constant=share * (1 - share),
        error=calibration_error(probability, y),
    )  # fmt: skip


def calibration_error(probability: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error over bins of equally many images (by rank; equal probabilities may be parted).

    Args:
        probability: ``[N]`` in 0..1.
        labels: ``[N]`` of 0 and 1.
        bins: at most N are used.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(labels, np.float64)
    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, min(bins, len(p)))
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in parts) / len(p))


def _fit(method: Method, s: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(s, y)
        return tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist()))
    from sklearn.linear_model import LogisticRegression

    # targets drawn in from 0 and 1, as weights of either label
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2)
    target = np.where(y == 1, high, low)
    middle, spread = s.mean(), max(float(s.std()), 1e-12)
    z = ((s - middle) / spread)[:, None]
    # the penalty left by this C is far below the rounding of the result
    model = LogisticRegression(C=1e12, tol=1e-9, max_iter=10_000)
    model.fit(np.vstack([z, z]), np.repeat([1, 0], len(s)), sample_weight=np.concatenate([target, 1 - target]))
    slope = float(model.coef_[0, 0]) / spread
    return ((float(model.intercept_[0]) - slope * float(middle), slope),)


def _apply(method: Method, knots: tuple[tuple[float, float], ...], s: NDArray[np.float64]) -> NDArray[np.float64]:
    if method == "isotonic":
        x, y = np.array(knots).T
        return np.interp(s, x, y)
    (offset, slope), = knots  # fmt: skip
    # the stable form: no overflow at either end
    return np.exp(-np.logaddexp(0.0, -(slope * s + offset)))
