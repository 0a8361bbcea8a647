"""The demo's sizes: data, model and steps, fixed so that every machine does the same work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from carzero.models.config import CARZeroConfig
from carzero.train.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """One version of the demo.

    Args:
        name: what the page calls it.
        train_images, test_images: phantoms drawn for training and held out.
        steps: optimizer steps of the main model.
        cosine_steps: steps of the model with a cosine head.
        shuffled_steps: steps of the model whose texts were shuffled among the images.
        batch_size: pairs a step.
        learning_rate: peak of all three.
        image_size, patch, width, depth, layers: of the model.
        resamples: bootstrap draws of the intervals.
        pointed: images per finding whose attention peak is compared with the drawn box.
    """

    name: str
    train_images: int
    test_images: int
    steps: int
    cosine_steps: int
    shuffled_steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    image_size: int = 128
    patch: int = 16
    width: int = 128
    depth: int = 3
    layers: int = 2
    resamples: int = 1000
    pointed: int = 12

    @property
    def drawn_size(self) -> int:
        """Side at which phantoms are drawn, so that the preprocessing crops and does not resize them."""
        return self.image_size + 2 * round(self.image_size / 14)

    def model(self, vocab_size: int) -> CARZeroConfig:
        """The model's configuration for a vocabulary of this size."""
        config = CARZeroConfig.tiny(
            vocab_size=vocab_size,
            width=self.width,
            depth=self.depth,
            layers=self.layers,
            image_size=self.image_size,
            patch=self.patch,
            max_tokens=24,
            dropout=0.0,
        )
        # a sentence of a dozen words needs no more than two layers; linear patches stay at chance for a thousand steps
        return dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, depth=2, last_layers=3),
            image=dataclasses.replace(config.image, stem="conv"),
        )

    def training(self, manifest: Path, out: Path, *, seed: int, steps: int) -> TrainConfig:
        """The settings of one training."""
        return TrainConfig(
            manifest=str(manifest),
            out=str(out),
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=0.08,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            clip=1.0,
            positives="report",
            cache=True,
            seed=seed,
            device="cpu",
            log_every=50,
            checkpoint_every=500,
        )


FULL = Recipe("full", train_images=2400, test_images=600, steps=1000, cosine_steps=1000, shuffled_steps=250)
QUICK = Recipe(
    "quick", train_images=900, test_images=240, steps=160, cosine_steps=160, shuffled_steps=60, resamples=500, pointed=4
)
