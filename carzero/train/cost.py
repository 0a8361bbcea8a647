"""What a training step costs, by formula: multiplications, bytes on the wire, memory of a process. docs/scaling.md.

Letters as in docs/conventions.md: B images and T texts in the global batch, W ranks, N weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from carzero.ops.spec import DecoderSpec


@dataclass(frozen=True)
class Tower:
    """A transformer encoder.

    Args:
        width, depth, ffn: its sizes.
        tokens: of one sample.
        weights: numbers in it.
        outside: of the weights, those outside the blocks (embeddings, the last norm), which take next to no operations.
    """

    width: int
    depth: int
    ffn: int
    tokens: int
    weights: int
    outside: int = 0

    @property
    def forward_flops(self) -> float:
        """Floating-point operations of one sample's forward: two for each weight and token, and attention."""
        attention = 4 * self.tokens**2 * self.width * self.depth
        return 2 * (self.weights - self.outside) * self.tokens + attention

    def activation_bytes(self, element: int = 2) -> int:
        """What one sample's forward keeps for its backward.

        A block keeps its two normalised inputs, q, k and v, attention's output, two residuals (float32), and the hidden
        layer before and after its activation.
        """
        row = element * (6 * self.width + 2 * self.ffn) + 4 * 2 * self.width
        return self.tokens * self.depth * row


#: CARZero's towers; a text is computed up to the longest of its batch, 30 word pieces for single sentences.
IMAGE = Tower(width=768, depth=12, ffn=3072, tokens=197, weights=85_798_656, outside=744_192)
TEXT = Tower(width=768, depth=12, ffn=3072, tokens=30, weights=108_891_648, outside=23_837_184)


@dataclass(frozen=True)
class StepCost:
    """One training step of the whole batch on W ranks.

    Args:
        batch: B, of all ranks.
        world: W.
        per_image: T / B.
        micro_batch: images that a rank encodes at a time; all of its share when None.
        sharding: as `TrainConfig.sharding`.
        decoder: the decoder's sizes.
        decoder_weights: numbers in it.
        text_rows: rows of a collapsed text memory.
        element: bytes of a 16-bit (2) or float32 (4) activation.
    """

    batch: int
    world: int = 1
    per_image: int = 1
    micro_batch: int | None = None
    sharding: Literal["none", "fsdp2"] = "none"
    image: Tower = IMAGE
    text: Tower = TEXT
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    decoder_weights: int = 17_205_761
    text_rows: int = 32
    element: int = 2

    @property
    def texts(self) -> int:
        """T."""
        return self.batch * self.per_image

    @property
    def own_images(self) -> int:
        """Images of the rank that has the most."""
        return -(-self.batch // self.world)

    @property
    def weights(self) -> int:
        """N."""
        return self.image.weights + self.text.weights + self.decoder_weights

    @property
    def cut(self) -> bool:
        """Whether the encoders run twice."""
        return self.micro_batch is not None and self.micro_batch < self.own_images

    def pair_flops(self, rows: int) -> float:
        """Forward of one pair with a memory of so many rows."""
        d, f = self.decoder.width, self.decoder.ffn
        widths = self.decoder.head_widths()
        head = sum(2 * a * b for a, b in pairwise(widths))
        # the first layer's query projection does not depend on the memory
        projections = (2 * self.decoder.layers - 1) * 2 * d * d
        return projections + self.decoder.layers * (4 * rows * d + 4 * d * f) + head

    def flops(self) -> dict[str, float]:
        """Operations of one rank: encoders forward and backward (3 forwards, 4 where they run twice); pairs 4."""
        passes = 4 if self.cut else 3
        texts = self.own_images * self.per_image
        memory = 4 * self.decoder.layers * self.decoder.width**2
        image_pairs = self.own_images * self.texts * self.pair_flops(self.image.tokens)
        text_pairs = texts * self.batch * self.pair_flops(self.text_rows)
        kv = memory * (self.own_images * self.image.tokens + texts * self.text_rows)
        return {
            "image encoder": passes * self.own_images * self.image.forward_flops,
            "text encoder": passes * texts * self.text.forward_flops,
            "decoder": 4 * (image_pairs + text_pairs + kv),
        }

    def wire_bytes(self) -> dict[str, int]:
        """Bytes that the rank with the most images hands to collectives in one step; 0 on one rank.

        Vectors travel in the activations' dtype; logarithms, counts and weights in float32.
        """
        if self.world == 1:
            return dict.fromkeys(("global vectors", "their gradients", "columns", "weights", "loss and signals"), 0)
        d = self.decoder.width
        return {
            "global vectors": self.element * d * self.own_images * (1 + self.per_image),
            "their gradients": self.element * d * self.own_images * self.world * (1 + self.per_image),
            # of each column the largest logarithm, the sum of the others against it, and the count of its positives
            "columns": 3 * 4 * (self.batch + self.texts),
            "weights": self._weight_bytes(),
            "loss and signals": 4 + 16,
        }

    def moved_bytes(self) -> float:
        """Bytes that a rank sends where every collective is a ring."""
        w, handed = self.world, self.wire_bytes()
        moved = (w - 1) * handed["global vectors"] + (w - 1) / w * handed["their gradients"]
        moved += 2 * (w - 1) / w * (handed["columns"] + handed["loss and signals"])
        if self.sharding == "none":
            return moved + 2 * (w - 1) / w * handed["weights"]
        gathered, scattered = self._sharded_bytes()
        return moved + (w - 1) * gathered + (w - 1) / w * scattered

    def _weight_bytes(self) -> int:
        return 4 * self.weights if self.sharding == "none" else sum(self._sharded_bytes())

    def _sharded_bytes(self) -> tuple[int, int]:
        """Under FSDP2 weights are gathered and gradients scattered unit by unit: bytes handed to the two."""
        parts = -(-self.own_images // (self.micro_batch or self.own_images))
        outside = self.image.outside + self.text.outside
        blocks = self.image.weights + self.text.weights - outside
        # blocks: each forward and backward; the decoder: both directions of each; the rest stays after a forward
        gathered = blocks * (3 * parts if self.cut else 2) + 4 * self.decoder_weights
        gathered += outside * (2 * parts + 1 if self.cut else 1)
        return 4 * gathered // self.world, 4 * ((blocks + outside) * parts + self.decoder_weights)

    def memory_bytes(self, *, op_tile: int = 80 * 2**20) -> dict[str, int]:
        """Memory of one rank at its peak, by what it is for.

        Args:
            op_tile: workspace of the op, which does not grow with the batch.
        """
        share = self.world if self.sharding == "fsdp2" else 1
        own_texts = self.own_images * self.per_image
        encoded = self.micro_batch if self.cut and self.micro_batch else self.own_images
        samples = encoded * (
            self.image.activation_bytes(self.element) + self.per_image * self.text.activation_bytes(self.element)
        )
        memories = self.own_images * self.image.tokens + own_texts * self.text_rows
        logits = self.own_images * self.texts + own_texts * self.batch
        d = self.decoder.width
        return {
            "weights, gradients, optimizer": 16 * self.weights // share,
            "encoder activations": samples,
            # memories and their gradients; where the encoders run twice the features are kept apart from their graph
            "memories": 2 * self.element * d * memories,
            # logits, their gradient, a softmax and a target (float32), and the positives (one byte)
            "logits": 17 * logits,
            "op": self.op_extra_bytes(op_tile),
        }

    def op_extra_bytes(self, op_tile: int = 80 * 2**20) -> int:
        """What the op takes beyond a cosine head: its tile, and the decoder's gradients, not the batch."""
        return op_tile + 4 * self.decoder_weights


def published_decoder_bytes(
    memories: int, queries: int, rows: int, spec: DecoderSpec | None = None, element: int = 2
) -> int:
    """What the published decoder keeps for one direction's backward: every intermediate of every pair.

    A layer keeps, for each pair, two normalised inputs, q, attention's output, its projection and the two residuals
    (width D), the hidden layer twice (F), two dropout masks, and the attention weights of H heads twice; keys and
    values of the memories come once a layer and pair, for the memory is repeated for every query.
    """
    spec = spec or DecoderSpec()
    pair = spec.layers * (7 * spec.width + 2 * spec.ffn + 2 * spec.heads * rows) * element
    return memories * queries * pair + memories * spec.layers * 3 * rows * spec.width * element
