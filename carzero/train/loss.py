"""InfoNCE over the all-pairs logits of both directions.

Letters: B images and T texts in the batch, T = B unless several texts stand for each image. Both matrices have a row
per image and a column per text, as `carzero.CARZero.logits` gives them: the text-memory logits are already transposed,
which the loss cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def info_nce(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """Mean of the row and the column cross-entropy of one logit matrix.

    Equivalent to, with a text for each image and no positives given::

        t = torch.arange(B)
        (F.cross_entropy(logits, t) + F.cross_entropy(logits.T, t)) / 2

    Args:
        logits: ``[B, T]``, any floating dtype; computed in at least float32.
        positives: bool ``[B, T]``, True where the row's image and the column's text belong together; when None, text j
            belongs to image ``j // (T / B)`` alone. A row's (a column's) target is spread evenly over its positives.

    Returns:
        Scalar.

    Raises:
        ValueError: T is no multiple of B where no positives are given, `positives` has another shape, or an image or
            a text has no positive.

    Source: CARZero section 3.4.
    """
    if logits.ndim != 2 or (positives is None and logits.shape[1] % max(1, len(logits))):
        raise ValueError(
            f"info_nce: logits must be [images, texts] with the same number of texts for each image, got shape "
            f"{tuple(logits.shape)}; give positives where it differs."
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if positives is None:
        owner = torch.arange(logits.shape[1], device=logits.device) // (logits.shape[1] // max(1, len(logits)))
        if len(owner) == len(logits):
            return (F.cross_entropy(logits, owner) + F.cross_entropy(logits.T, owner)) / 2
        positives = owner == torch.arange(len(logits), device=logits.device)[:, None]
    if positives.shape != logits.shape or not bool(positives.any(0).all() & positives.any(1).all()):
        raise ValueError(
            "info_nce: positives must have the shape of the logits and one or more in each row and column, got "
            f"{tuple(positives.shape)} for logits {tuple(logits.shape)}, {int((~positives.any(1)).sum())} rows and "
            f"{int((~positives.any(0)).sum())} columns without."
        )
    target = positives.to(logits.dtype)
    rows = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, (target / target.sum(0, keepdim=True)).T)
    return (rows + columns) / 2


def contrastive_loss(image_memory: Tensor, text_memory: Tensor, positives: Tensor | None = None) -> Tensor:
    """The published loss: the sum of `info_nce` over the two directions.

    Args:
        image_memory: ``[B, T]`` logits, a row per image.
        text_memory: ``[B, T]`` logits, a row per image too.
        positives: bool ``[B, T]``, a row per image; see `info_nce`.
    """
    return info_nce(image_memory, positives) + info_nce(text_memory, positives)


def positive_pairs(
    said: Sequence[AbstractSet[str]],
    known: Sequence[AbstractSet[str]] | None = None,
    *,
    per_image: int = 1,
    images: slice = slice(None),
    texts: slice = slice(None),
) -> Tensor:
    """Which texts of a batch are true of which images, as far as the reports say.

    *Equivalent to* (for all images and texts)::

        own = [union of {said[j]} for the texts j of image i]
        true[i, j] = j // per_image == i  or  (said[j] <= known[i] if known else said[j] in own[i])

    Args:
        said: the sentences of each of the T texts, cleaned; text j belongs to image ``j // per_image``.
        known: the cleaned sentences of each of the B images' reports. When given, text j is a positive of image i where
            report i holds all of its sentences; when None, where it says the same as a text of image i.
        per_image: T / B, texts of an image.
        images, texts: which of them to look at: a rank needs its own rows of a large batch alone.

    Returns:
        bool ``[images, texts]``; an image's own texts are True.
    """
    rows, columns = range(len(said) // per_image)[images], range(len(said))[texts]
    true = np.zeros((len(rows), len(columns)), dtype=bool)
    # rows that know a sentence, or, without reports, that say a whole text
    holders: dict[object, set[int]] = {}
    for place, i in enumerate(rows):
        own = said[i * per_image : (i + 1) * per_image]
        for item in map(frozenset, own) if known is None else known[i]:
            holders.setdefault(item, set()).add(place)
    found: dict[frozenset[str], NDArray[np.int64]] = {}
    for place, j in enumerate(columns):
        text = frozenset(said[j])
        if text not in found:
            if known is None:
                sets = [holders.get(text, set())]
            else:
                # a text without a sentence is true of every image
                sets = [holders.get(sentence, set()) for sentence in text] or [set(range(len(rows)))]
            found[text] = np.fromiter(set.intersection(*sorted(sets, key=len)), np.int64)
        true[found[text], place] = True
        if j // per_image in rows:
            true[rows.index(j // per_image), place] = True
    return torch.from_numpy(true)
