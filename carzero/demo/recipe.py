"""The demo's sizes: data, model and steps, fixed so that every machine does the same work."""

from __future__ import annotations

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
        cosine_steps: steps of the model with a cosine head; as many, for the comparison to be one.
        shuffled_steps: steps of the model whose texts were shuffled among the images.
        batch_size: images a step.
        texts_per_image: texts a step that are said of each.
        learning_rate: peak of all three.
        image_size, layers: of the model.
        resamples: bootstrap draws of the intervals.
        rounds: of timing the op.
        pointed: images per finding whose attention peak is compared with the drawn box.
    """

    name: str
    train_images: int
    test_images: int
    steps: int
    cosine_steps: int
    shuffled_steps: int
    batch_size: int = 32
    texts_per_image: int = 2
    learning_rate: float = 1e-3
    image_size: int = 128
    layers: int = 2
    resamples: int = 1000
    pointed: int = 12
    rounds: int = 3

    @property
    def drawn_size(self) -> int:
        """Side at which phantoms are drawn, so that the preprocessing crops and does not resize them."""
        return self.image_size + 2 * round(self.image_size / 14)

    def model(self, vocab_size: int) -> CARZeroConfig:
        """The model's configuration for a vocabulary of this size."""
        return CARZeroConfig.small(vocab_size=vocab_size, image_size=self.image_size, max_tokens=24, layers=self.layers)

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
            texts_per_image=self.texts_per_image,
            augment="crop",
            cache=True,
            seed=seed,
            device="cpu",
            log_every=50,
            checkpoint_every=500,
        )


FULL = Recipe("full", train_images=4000, test_images=600, steps=1000, cosine_steps=1000, shuffled_steps=200)
QUICK = Recipe(
    "quick",
    train_images=800,
    test_images=200,
    steps=90,
    cosine_steps=90,
    shuffled_steps=30,
    resamples=500,
    pointed=4,
    rounds=1,
)
