"""What a model is measured on: images with labels, from files or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carzero.data.files import ImageFile, list_images
from carzero.data.phantom import FINDINGS, label_column, split
from carzero.errors import UserError
from carzero.evaluate.joining import name_key, name_parts
from carzero.evaluate.tables import Labels
from carzero.prompts.sets import PromptSet

SIDES = ("left", "right")


@dataclass(frozen=True)
class Subject:
    """Images, what is known of them, and what is asked.

    Args:
        images: to read, in the order of `labels`.
        labels: of the same images; columns ``X, left`` and ``X, right`` say on which side X lies.
        prompts: one class per label.
        drawn: whether the images are drawn.
    """

    images: list[ImageFile] | list[np.ndarray]
    labels: Labels
    prompts: PromptSet
    drawn: bool = False


def drawn_subject(count: int, seed: int = 0) -> Subject:
    """Held-out drawn radiographs: every finding, and its side, is known."""
    if count < 2:
        raise UserError(f"--drawn needs at least 2 radiographs, got {count}.")
    phantoms = list(split(0, count, seed=seed)[1])
    table = pd.DataFrame({label_column(k): [int(p.labels[k]) for p in phantoms] for k in phantoms[0].labels})
    labels = Labels("the drawn radiographs", [f"drawn {i}" for i in range(count)], table, classes=tuple(FINDINGS))
    return Subject([p.image for p in phantoms], labels, PromptSet.from_findings(list(FINDINGS)), drawn=True)


def subject_of_files(folder: str | Path, labels: Labels, prompts: PromptSet) -> Subject:
    """The images that labels name, found in a folder by name; others in it are left alone.

    Raises:
        UserError: an image is not there, or two files bear its name.
    """
    files = list_images([folder])
    parts = name_parts(labels.images)
    found: dict[tuple[str, ...], list[ImageFile]] = {}
    for file in files:
        found.setdefault(name_key(file.path.as_posix(), parts), []).append(file)
    wanted = [name_key(name, parts) for name in labels.images]
    absent = ["/".join(key) for key in wanted if key not in found]
    doubled = ["/".join(key) for key in wanted if len(found.get(key, ())) > 1]
    for names, what in ((absent, "are not in"), (doubled, "are in several places of")):
        if names:
            raise UserError(
                f"{len(names)} of {len(wanted)} images that {labels.source} names {what} {folder}: "
                f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."
            )
    return Subject([found[key][0] for key in wanted], labels, prompts)
