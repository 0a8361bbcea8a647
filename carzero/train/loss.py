"""InfoNCE over the all-pairs logits of both directions.

Letters: B pairs of image and text in the batch. Both matrices have a row per image and a column per text, as
`carzero.CARZero.logits` gives them: the text-memory logits are already transposed, which the loss cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """Mean of the row and the column cross-entropy of one logit matrix.

    Equivalent to::

        t = torch.arange(B)
        (F.cross_entropy(logits, t) + F.cross_entropy(logits.T, t)) / 2

    Args:
        logits: ``[B, B]``, any floating dtype; computed in at least float32.
        positives: bool ``[B, B]``, True where the row's image and the column's text belong together; the diagonal
            when None. A row's (a column's) target is spread evenly over its positives.

    Returns:
        Scalar.

    Raises:
        ValueError: the matrix is not square, or `positives` has another shape or leaves out the diagonal.

    Source: CARZero section 3.4.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"info_nce: logits must be square, one text per image, got shape {tuple(logits.shape)}.")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if positives is None:
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if positives.shape != logits.shape or not bool(positives.diagonal().all()):
        raise ValueError(
            "info_nce: positives must have the shape of the logits and hold the diagonal, got "
            f"{tuple(positives.shape)} for logits {tuple(logits.shape)}, "
            f"{int(positives.diagonal().sum())} of {len(positives.diagonal())} on the diagonal."
        )
    target = positives.to(logits.dtype)
    rows = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, (target / target.sum(0, keepdim=True)).T)
    return (rows + columns) / 2


def contrastive_loss(image_memory: Tensor, text_memory: Tensor, positives: Tensor | None = None) -> Tensor:
    """The published loss: the sum of `info_nce` over the two directions.

    Args:
        image_memory: ``[B, B]`` logits, a row per image.
        text_memory: ``[B, B]`` logits, a row per image too.
        positives: bool ``[B, B]``, a row per image; see `info_nce`.
    """
    return info_nce(image_memory, positives) + info_nce(text_memory, positives)


def positive_pairs(said: Sequence[AbstractSet[str]], known: Sequence[AbstractSet[str]] | None = None) -> Tensor:
    """Which texts of a batch are true of which images, as far as the reports say.

    Args:
        said: the sentences of each of the B texts, cleaned; text j belongs to image j.
        known: the cleaned sentences of each image's report. When given, text j is a positive of image i where report
            i holds all of its sentences; when None, where it says the same as text i.

    Returns:
        bool ``[B, B]``, a row per image, a column per text; the diagonal is True.
    """
    true = [
        [i == j or (t <= known[i] if known else t == said[i]) for j, t in enumerate(said)] for i in range(len(said))
    ]
    return torch.tensor(true, dtype=torch.bool).reshape(len(said), len(said))
