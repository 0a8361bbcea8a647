"""The loss against a slow version that follows the text of the paper, value and gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from carzero.train.loss import contrastive_loss, info_nce, positive_pairs
from carzero.train.schedule import learning_rate


def slow_info_nce(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Row by row and column by column: minus the mean log-probability of the positives."""
    total = logits.new_zeros(())
    for scores, true in ((logits, positives), (logits.T, positives.T)):
        for i in range(len(scores)):
            everything = sum(torch.exp(value) for value in scores[i])
            own = [j for j in range(scores.shape[1]) if true[i, j]]
            total = total - sum(torch.log(torch.exp(scores[i, j]) / everything) for j in own) / len(own) / len(scores)
    return total / 2


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("multi", [False, True])
def test_equals_the_written_out_version_with_gradients(batch: int, per_image: int, multi: bool) -> None:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, batch * per_image)
    a = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    positives = torch.eye(batch, dtype=torch.bool).repeat_interleave(per_image, 1)
    if multi:
        positives |= torch.rand(shape, generator=generator) < 0.3
    ours = contrastive_loss(a, b, positives if multi else None)
    slow = slow_info_nce(a, positives) + slow_info_nce(b, positives)
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(slow, (a, b))):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_diagonal_positives_are_the_published_targets() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(info_nce(logits), info_nce(logits, torch.eye(6, dtype=torch.bool)))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert info_nce(logits).dtype == torch.float32
    torch.testing.assert_close(info_nce(logits), info_nce(logits.float()), rtol=0, atol=0)


def test_wrong_shapes_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"same number of texts for each image, got shape \(2, 3\)"):
        info_nce(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 2\) for logits \(2, 3\)"):
        info_nce(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="1 rows and 2 columns without"):
        info_nce(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))


def test_positive_pairs_follow_texts_and_reports() -> None:
    said = [{"a"}, {"b"}, {"a"}, {"b", "a"}]
    assert positive_pairs(said).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    # image 0 reports b as well; image 2 does not; the last report leaves out what its own text says
    known = [{"a", "b"}, {"b"}, {"a", "c"}, {"c"}]
    assert positive_pairs(said, known).int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert positive_pairs(said, per_image=2).int().tolist() == [[1, 1, 1, 0], [1, 0, 1, 1]]
    assert positive_pairs(said, known[1:3], per_image=2).int().tolist() == [[1, 1, 0, 0], [1, 0, 1, 1]]


def test_positive_pairs_are_those_of_a_walk_through_all_pairs() -> None:
    random = np.random.default_rng(0)
    for per_image in (1, 2, 3):
        known = [frozenset(random.choice(list("abcdefg"), random.integers(0, 5)).tolist()) for _ in range(9)]
        said = [frozenset(random.permutation(list(known[j // per_image]))[:2].tolist()) for j in range(9 * per_image)]
        for reports in (None, known):
            walk = torch.zeros(9, 9 * per_image, dtype=torch.bool)
            for i in range(9):
                own = said[i * per_image : (i + 1) * per_image]
                for j, text in enumerate(said):
                    walk[i, j] = i == j // per_image or (text <= known[i] if reports else text in own)
            assert torch.equal(positive_pairs(said, reports, per_image=per_image), walk)
            # a rank's rows by image and by text
            rows, columns = slice(2, 5), slice(4, 8)
            assert torch.equal(positive_pairs(said, reports, per_image=per_image, images=rows), walk[rows])
            assert torch.equal(positive_pairs(said, reports, per_image=per_image, texts=columns), walk[:, columns])


def test_schedule_climbs_then_falls() -> None:
    rates = [learning_rate(s, peak=2.0, steps=100, warmup=0.1, schedule="cosine") for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[99] < 0.01
    assert learning_rate(99, peak=2.0, steps=100, warmup=0.1, schedule="constant") == 2.0
    assert learning_rate(0, peak=2.0, steps=1, warmup=0.0, schedule="cosine") == 2.0
