"""Figures of merit for zero-shot scores."""

from carzero.evaluate.auroc import Interval, auroc, auroc_interval, macro_auroc_interval

__all__ = ["Interval", "auroc", "auroc_interval", "macro_auroc_interval"]
