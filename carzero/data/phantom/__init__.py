"""Drawn frontal chest radiographs with findings, boxes and reports: for demo, tests and trial runs."""

from carzero.data.phantom.dataset import PhantomSet, label_column, split, write_dataset
from carzero.data.phantom.draw import Labels, Phantom, draw, labels_of, planned
from carzero.data.phantom.findings import FINDINGS, Finding
from carzero.data.phantom.reports import HELD_OUT_WORDINGS, WORDINGS, aligned, held_out

__all__ = [
    "FINDINGS",
    "HELD_OUT_WORDINGS",
    "WORDINGS",
    "Finding",
    "Labels",
    "Phantom",
    "PhantomSet",
    "aligned",
    "draw",
    "held_out",
    "label_column",
    "labels_of",
    "planned",
    "split",
    "write_dataset",
]
