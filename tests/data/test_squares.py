"""Prepared images that processes share: each read once, the same bits, none half written."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from carzero.data.images import ImageProcessor
from carzero.data.squares import SquareCache
from carzero.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{k}.png") for k in range(3)]
    for k, path in enumerate(paths):
        cv2.imwrite(path, np.random.default_rng(k).integers(0, 256, (40 + k, 50), dtype=np.uint8))
    return paths


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_squares_are_the_processor_s_and_come_from_any_process(images: list[str], tmp_path: Path, place: str) -> None:
    processor = ImageProcessor(size=64)
    cache = SquareCache(images, processor, None if place == "memory" else tmp_path / "cache")
    assert cache.held == 0
    pid = os.fork()
    if pid == 0:
        cache[1]
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    # what the other process prepared is here, and is not read again
    assert cache.held == 1
    os.remove(images[1])
    np.testing.assert_array_equal(cache[0], processor.square(images[0])[0])
    assert cache[1].shape == (processor.side, processor.side)
    assert cache[1].any()
    assert cache.held == 2


def test_a_folder_serves_later_runs_until_a_file_changes(images: list[str], tmp_path: Path) -> None:
    processor = ImageProcessor(size=64)
    first = SquareCache(images, processor, tmp_path / "cache")
    squares = [first[k].copy() for k in range(3)]
    again = SquareCache(images, processor, tmp_path / "cache")
    assert again.held == 3
    for k in range(3):
        np.testing.assert_array_equal(again[k], squares[k])
    assert SquareCache(images, ImageProcessor(size=32), tmp_path / "cache").held == 0
    os.utime(images[2], ns=(1, 1))
    assert SquareCache(images, processor, tmp_path / "cache").held == 0


def test_a_square_that_was_being_written_does_not_count(images: list[str]) -> None:
    class Failing(ImageProcessor):
        def square(self, image):
            raise KeyboardInterrupt

    cache = SquareCache(images, Failing(size=64))
    with pytest.raises(KeyboardInterrupt):
        cache[0]
    assert cache.held == 0


def test_a_folder_without_room_or_rights_gets_a_sentence(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot take 0 MiB of prepared images: (Not a directory|File exists)"):
        SquareCache(images, ImageProcessor(size=64), tmp_path / "file")
