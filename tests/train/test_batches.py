"""What a step sees: batch sizes that change with the epoch, sentences, mirrored images with their sides exchanged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import carzero
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.train.batches import PairStream
from carzero.train.config import TrainConfig
from carzero.train.order import Course, batch_indices
from carzero.train.reader import Reader
from carzero.train.sentences import published_sentences, sentences, swap_sides


def stream_of(config: TrainConfig) -> PairStream:
    stream = PairStream(config)
    stream.prepare_for(CARZero(CARZeroConfig.from_json(Path(config.model).read_text())))
    return stream


def test_batch_sizes_by_epoch_are_those_written_out() -> None:
    """Against a plain walk through the epochs."""
    sizes, pairs = {0: 2, 2: 3, 5: 20}, 7
    walk = []
    for epoch in range(8):
        size = min(pairs, [s for first, s in sizes.items() if first <= epoch][-1])
        walk += [(epoch, slot, size) for slot in range(max(1, pairs // size))]
    course = Course(pairs, sizes)
    assert [(*course.place(step), course.batch_size(course.place(step)[0])) for step in range(len(walk))] == walk
    assert [course.steps(n) for n in range(9)] == [sum(w[0] < n for w in walk) for n in range(9)]
    for step, (_, _, size) in enumerate(walk):
        assert len(batch_indices(step, pairs=pairs, batch_size=sizes, seed=0)) == size
    # within an epoch no pair comes twice
    for epoch in range(8):
        seen = [
            i
            for step, w in enumerate(walk)
            if w[0] == epoch
            for i in batch_indices(step, pairs=pairs, batch_size=sizes, seed=0)
        ]
        assert len(seen) == len(set(seen))


def test_a_run_with_growing_batches_reads_them(config: TrainConfig) -> None:
    growing = dataclasses.replace(config, batch_size={0: 3, 1: 6}, steps=None, epochs=2)
    stream = stream_of(growing)
    assert stream.course.steps(2) == 6
    assert [len(batch.views) for batch in Reader(stream, 0, 6, 0)] == [3, 3, 3, 3, 6, 6]
    assert "3 a step, 6 a step from epoch 1 on" in stream.describe()


def test_pixels_are_the_processor_s(config: TrainConfig) -> None:
    stream = stream_of(dataclasses.replace(config, augment="none"))
    batch = stream[0]
    want = [carzero.ImageProcessor(size=32)(path) for path in stream.image_paths(0)]
    assert torch.equal(batch.pixels, torch.stack(want))
    assert batch.views.dtype == torch.uint8


def test_flips_mirror_images_and_sides_exchanges_the_words(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, augment="none", text="report", batch_size=12)
    whole = stream_of(plain)[0]
    for flip in ("image", "sides"):
        flipped = stream_of(dataclasses.replace(plain, flip=flip, flip_share=1.0))[0]
        assert torch.equal(flipped.views, whole.views.flip(-1))
        changed = [a != b for a, b in zip(flipped.texts, whole.texts)]
        assert changed == [flip == "sides" and "left" in text for text in whole.texts]
        assert flipped.known == [
            frozenset(s.replace("left", "right") if flip == "sides" else s for s in known) for known in whole.known
        ]
    some = stream_of(dataclasses.replace(plain, flip="sides", flip_share=0.5))[0]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(some.views, whole.views)]
    assert 0 < sum(mirrored) < 12
    for was, text, before in zip(mirrored, some.texts, whole.texts):
        assert text == (before.replace("left", "right") if was else before)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            "Left lower lobe, RIGHT hilum; right-sided pleural effusion",
            "Right lower lobe, LEFT hilum; left-sided pleural effusion",
        ),
        ("Leftover fluid is bright", "Leftover fluid is bright"),
        ("Dextroscoliosis", "Levoscoliosis"),
    ],
)
def test_swapped_sides(text: str, other: str) -> None:
    assert swap_sides(text) == other
    assert swap_sides(other) == text


def test_published_sentences_keep_the_caption_cap() -> None:
    # five words together end it; one-word sentences and decimals go as in the authors' code
    assert published_sentences("No acute disease. Clear lungs. There is a mass.") == ["no acute disease", "clear lungs"]
    assert published_sentences("Normal. 1. Heart size of 1.5 cm is normal.\nNo mass") == [
        "heart size of", "5 cm is normal", "no mass",
    ]  # fmt: skip
    assert sentences("No acute disease. Clear lungs. There is a mass.") == [
        "No acute disease.", "Clear lungs.", "There is a mass.",
    ]  # fmt: skip


def test_lists_of_texts_are_drawn_as_they_are(config: TrainConfig, manifest: Path) -> None:
    rows = manifest.read_text().splitlines()[1:]
    lines = [
        "image,texts",
        *(f'{row.split(",")[0]},"[""A first text. Of two sentences."", ""Another""]"' for row in rows),
    ]
    manifest.write_text("\n".join(lines))
    stream = stream_of(dataclasses.replace(config, text="sentence", texts_per_image=2))
    batch = stream[0]
    assert {frozenset(batch.texts[2 * i : 2 * i + 2]) for i in range(5)} == {
        frozenset({"A first text. Of two sentences.", "Another"})
    }
    assert np.unique(batch.texts).tolist() == ["A first text. Of two sentences.", "Another"]
