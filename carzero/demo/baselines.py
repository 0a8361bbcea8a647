"""What the demo's model is compared with: a linear model on pixels, and a cosine in place of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from carzero.models.carzero import CARZero, TextBank
from carzero.models.config import CARZeroConfig
from carzero.models.encoded import Encoded


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


class CosineCARZero(CARZero):
    """CARZero's two encoders with a cosine between their projected global vectors in place of the decoder.

    Equivalent to::

        scale.exp() * F.normalize(Wi images.query) @ F.normalize(Wt texts.query).T        # [B, T], in both directions

    The decoder's parameters are there but take no part.
    """

    def __init__(self, config: CARZeroConfig, tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.decoder.requires_grad_(False)
        width = config.decoder.width
        self.image_projection = nn.Linear(width, width, bias=False)
        self.text_projection = nn.Linear(width, width, bias=False)
        # CLIP's start: temperature 0.07
        self.scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    def logits(self, images: Tensor | Encoded, texts: Sequence[str] | Encoded, **_) -> tuple[Tensor, Tensor]:
        images = images if isinstance(images, Encoded) else self.encode_images(images)
        texts = texts if isinstance(texts, Encoded) else self.encode_texts(texts)
        image = F.normalize(self.image_projection(images.query), dim=-1)
        text = F.normalize(self.text_projection(texts.query), dim=-1)
        cosine = self.scale.exp().clamp(max=100) * image @ text.T
        return cosine, cosine

    @torch.no_grad()
    def similarity(  # type: ignore[override]
        self, images: Tensor | Encoded, texts: Sequence[str] | Encoded | TextBank, **_
    ) -> Tensor:
        return self.logits(images, texts.encoded if isinstance(texts, TextBank) else texts)[0]
