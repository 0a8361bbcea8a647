"""Processes that read images do not hang after their parent has used OpenCV's threads."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from carzero.data.images import ImageProcessor
from carzero.data.workers import forkable_opencv, start_reader


class Blurred:
    """Items whose reading runs an OpenCV function that works in parallel."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return ImageProcessor()(picture(index))


def picture(index):
    noise = np.random.default_rng(index).integers(0, 256, (1500, 1500), dtype=np.uint8)
    return cv2.resize(cv2.GaussianBlur(noise, (0, 0), 5), (1200, 1300), interpolation=cv2.INTER_AREA)


def test_children_of_a_parent_with_opencv_threads_finish():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        expected = [ImageProcessor()(picture(index)) for index in range(4)]
        # a hang shows as torch's timeout error
        loader = DataLoader(Blurred(), 2, num_workers=2, worker_init_fn=start_reader, timeout=60)
        with forkable_opencv():
            batches = iter(loader)
        assert cv2.getNumThreads() == 4
        assert torch.equal(torch.cat(list(batches)), torch.stack(expected))
    finally:
        cv2.setNumThreads(before)
