"""What the demo's model is compared with beside a cosine in place of the decoder: a linear model on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray


def pixel_scores(
    train: Sequence[NDArray[np.uint8]], labels: NDArray[np.bool_], test: Sequence[NDArray[np.uint8]], *, size: int = 32
) -> NDArray[np.floating]:
    """Scores by one logistic regression per finding on grey values; it is given the labels, which the others are not.

    Args:
        train, test: grey images; brought down to `size` x `size`.
        labels: ``[N, C]`` of the training images; each class has both values.

    Returns:
        ``[len(test), C]`` decision values.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def pixels(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        small = [cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA).ravel() for i in images]
        return (np.stack(small) / 255).astype(np.float32)

    x, held = pixels(train), pixels(test)
    columns = []
    for c in range(labels.shape[1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
        columns.append(model.fit(x, labels[:, c]).decision_function(held))
    return np.stack(columns, axis=1)
