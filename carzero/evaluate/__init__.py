"""Figures of merit for zero-shot scores, with intervals that resample whole patients."""

from carzero.evaluate.auroc import auroc, auroc_interval, macro_auroc_interval
from carzero.evaluate.bootstrap import Interval, Resampling, bootstrap, mean_draws, mean_interval, percentile_interval

__all__ = [
    "Interval", "Resampling", "auroc", "auroc_interval", "bootstrap", "macro_auroc_interval", "mean_draws",
    "mean_interval", "percentile_interval",
]  # fmt: skip
