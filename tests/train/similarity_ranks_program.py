"""Run by test_similarity_ranks by torchrun: the loss with similarities of tokens on W ranks, to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from carzero.models.config import DecoderConfig
from carzero.models.encoded import Encoded, with_tokens, without_padding
from carzero.models.similarity import IMAGE_TOKENS, TEXT_TOKENS, PairSimilarity
from carzero.train.ranks import Ranks, join, leave
from carzero.train.sharded import sharded_contrastive_loss

IMAGES, D = 5, 16
NAMES = ("gloria", "max_sim", "vl_cabs", "cosine")


def run(ranks: Ranks, name: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of the whole batch; each rank cuts its texts to the longest that it has."""
    torch.manual_seed(0)
    scorer = PairSimilarity(name, DecoderConfig(width=D, heads=2)).double()
    image, text = (torch.randn(IMAGES, rows, D, dtype=torch.float64).requires_grad_() for rows in (6, 9))
    lengths = torch.tensor([2, 7, 3, 8, 1])
    mine = ranks.part(IMAGES)
    images = Encoded(image[mine], image[mine, 0])
    longest = int(lengths[mine].max()) + 1
    texts = without_padding(Encoded(text[mine, :longest], text[mine, 0]), lengths[mine])
    loss = sharded_contrastive_loss(
        scorer,
        with_tokens(images) if name in IMAGE_TOKENS else images,
        with_tokens(texts) if name in TEXT_TOKENS else texts,
        ranks, total_images=IMAGES, total_texts=IMAGES,
    )  # fmt: skip
    loss.backward()
    leaves = {"image": image, "text": text, **dict(scorer.named_parameters())}
    return {"loss": ranks.sum(loss.detach()), **{key: ranks.sum(leaf.grad) for key, leaf in leaves.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    group = join()
    found = {name: run(group, name) for name in NAMES}
    if group.first:
        torch.save(found, Path(sys.argv[1]))
    leave()
