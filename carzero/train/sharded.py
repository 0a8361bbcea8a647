"""The loss of one global batch whose images and texts lie on several ranks, exact, without moving a token.

Each rank keeps its own memories and gathers only the global vectors, D numbers a sample. Its block of logits,
``[M_local, Q]``, has complete rows; of its columns the ranks exchange a log-sum-exp each. docs/design.md, identity 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carzero.models.decoder import SimRDecoder
from carzero.models.encoded import Encoded
from carzero.models.similarity import PairSimilarity
from carzero.train.ranks import Ranks


def sharded_contrastive_loss(
    decoder: SimRDecoder | PairSimilarity,
    images: Encoded,
    texts: Encoded,
    ranks: Ranks,
    *,
    total_images: int,
    total_texts: int,
    positives: Tensor | tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
    original_text_rows: int | None = None,
    backend: str = "auto",
    recompute: str = "auto",
) -> Tensor:
    """This rank's share of `contrastive_loss` over the global batch: the shares of all ranks add up to it.

    Gradients add up as well: summed over ranks (DDP averages them, so scale by W under it) they are those of the batch
    in one process.

    Args:
        images, texts: this rank's, ``ranks.part`` of the global batch's images with their texts, in order.
        total_images, total_texts: B and T of the global batch; T is a multiple of B.
        positives: bool ``[B, T]`` of the global batch, the same on every rank, or this rank's rows of it alone:
            ``[B_local, T]`` for its images and ``[T_local, B]`` for its texts; see `info_nce`.
        seed: of the decoder's dropout, the same on every rank; masks follow the global pair.
        original_text_rows: rows of a text memory before collapse.
        backend, recompute: as in `carzero.ops.pair_logits`.

    Returns:
        Scalar.

    Source: DESIGN identity 7; exchanged are 2 D numbers a pair (and as many gradients), three sums a column.
    """
    if total_texts % total_images:
        raise ValueError(
            "sharded_contrastive_loss: total_texts must be a multiple of total_images, got "
            f"{total_texts} and {total_images}."
        )
    per_image, sizes = total_texts // total_images, ranks.sizes(total_images)
    first_image = sum(sizes[: ranks.rank])
    first_text = first_image * per_image
    image_queries = ranks.gather_rows(images.query, sizes)
    text_queries = ranks.gather_rows(_of_one_length(texts.query, ranks), [size * per_image for size in sizes])
    options = {"seed": seed, "backend": backend, "recompute": recompute}
    image_memory = decoder(
        images.memory, text_queries, row_count=images.row_count, direction=0, memory_offset=first_image, **options
    )
    text_memory = decoder(
        texts.memory, image_queries, row_count=texts.row_count, direction=1, memory_offset=first_text,
        original_rows=original_text_rows, **options,
    )  # fmt: skip
    if positives is None:
        owner = torch.arange(total_texts, device=images.query.device) // per_image
        image = torch.arange(total_images, device=owner.device)
        own_images, own_texts = (
            slice(first_image, first_image + len(images)),
            slice(first_text, first_text + len(texts)),
        )
        positives = owner == image[own_images, None], owner[own_texts, None] == image
    elif isinstance(positives, Tensor):
        positives = (
            positives[first_image : first_image + len(images)],
            positives.T[first_text : first_text + len(texts)],
        )
    image_rows, text_rows = positives
    return sharded_info_nce(image_memory, image_rows, ranks, total_images) + sharded_info_nce(
        text_memory, text_rows, ranks, total_texts
    )


def _of_one_length(query: Tensor, ranks: Ranks) -> Tensor:
    """A rank's queries; where they are rows of tokens, with zeros up to the longest of all ranks."""
    if query.dim() == 2 or ranks.world == 1:
        return query
    longest = int(ranks.stack(torch.tensor([query.shape[1]], device=query.device)).max())
    return torch.nn.functional.pad(query, (0, 0, 0, longest - query.shape[1]))


def sharded_info_nce(logits: Tensor, positives: Tensor, ranks: Ranks, total_rows: int) -> Tensor:
    """This rank's share of `info_nce`, given its rows of the logits.

    Args:
        logits: ``[R_local, C]``, any floating dtype; computed in at least float32.
        positives: bool ``[R_local, C]``; every row and, over all ranks, every column has one or more.
        total_rows: R.

    Returns:
        Scalar; its gradient is that of the whole loss with respect to these rows.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = positives.to(logits.dtype)
    row_target = target / target.sum(1, keepdim=True)
    rows = (logits.logsumexp(1) - (row_target * logits).sum(1)).sum() / total_rows
    # a column's log-sum-exp over all ranks: known to each, differentiated by each through its own rows
    own = logits.logsumexp(0) if len(logits) else logits.new_full((logits.shape[1],), -torch.inf)
    every = ranks.logsumexp(own)
    share = torch.exp(own.detach() - every)
    # the value counts once, on the first rank
    value = every if ranks.first else torch.zeros_like(every)
    through = share * (own - own.detach()) if len(logits) else torch.zeros_like(every)
    column_target = target / ranks.sum(target.sum(0))
    columns = (value + through - (column_target * logits).sum(0)).sum() / logits.shape[1]
    return (rows + columns) / 2
