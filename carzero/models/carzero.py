"""CARZero: two encoders and one decoder that is used in both directions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from carzero.errors import UserError

from .config import CARZeroConfig
from .decoder import SimRDecoder
from .encoded import Encoded, encoded_images, encoded_texts, with_tokens, without_padding
from .image_encoder import ImageEncoder
from .similarity import IMAGE_TOKENS, TEXT_TOKENS, MemoryRows, PairSimilarity
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from carzero.ops import ProjectedMemory

    from .hub import CardFacts


@dataclass(frozen=True)
class TextBank:
    """T texts encoded once, with the decoder's keys and values of their memories: what many images are scored against.

    It holds for the weights it was made with; make a new one after a training step.
    """

    encoded: Encoded
    projected: ProjectedMemory | MemoryRows

    def __len__(self) -> int:
        return len(self.encoded)


class CARZero(nn.Module):
    """Image-text similarity by cross-attention in both directions.

    *Equivalent to*::

        images, texts = encode_images(pixels), encode_texts(strings)
        image_memory = decoder(images.memory, texts.query)         # [B, T]
        text_memory = decoder(texts.memory, images.query).T        # [B, T]
        similarity = (image_memory + text_memory) / 2

    With another ``config.similarity`` the decoder is a `carzero.models.similarity.PairSimilarity`.

    Args:
        config: what it is made of; None is the published model with random weights.
        tokenizer: a Hugging Face fast tokenizer (`carzero.models.tokenizer.word_tokenizer` builds one offline); needed
            to encode strings.

    Raises:
        UserError: the three parts have different widths, or the tokenizer has more word pieces than the encoder.

    Source: CARZero (arXiv 2402.17417).
    """

    def __init__(self, config: CARZeroConfig | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        super().__init__()
        self.config = CARZeroConfig() if config is None else config
        self.image_encoder = ImageEncoder(self.config.image)
        self.text_encoder = TextEncoder(self.config.text, tokenizer, self.config.text_mode)
        self.decoder: SimRDecoder | PairSimilarity
        if self.config.similarity == "decoder":
            self.decoder = SimRDecoder(self.config.decoder)
        else:
            self.decoder = PairSimilarity(self.config.similarity, self.config.decoder)
        widths = (self.image_encoder.width, self.text_encoder.width, self.config.decoder.width)
        if len(set(widths)) > 1:
            raise UserError(
                "CARZero: image encoder, text encoder and decoder must have the same width, got {}, {} and {}; set "
                "image.width, text.width and decoder.width in the configuration.".format(*widths)
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.decoder.parameters()).dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, or None where the model was opened without one."""
        return self.text_encoder.tokenizer

    def set_image_size(self, image_size: int) -> None:
        """Take images of another size; timm resamples the position embedding."""
        self.image_encoder.set_image_size(image_size)
        self.config = dataclasses.replace(self.config, image=self.image_encoder.config)

    def encode_images(self, pixels: Tensor) -> Encoded:
        """Encode images, with gradients and dropout as the module's mode says.

        Args:
            pixels: ``[B, 3, S, S]`` floating, normalised as `carzero.ImageProcessor` does.

        Returns:
            memory ``[B, 1 + patches, D]``, query ``[B, D]`` (the memory's rows for similarities of tokens).
        """
        query, local = self.image_encoder(pixels.to(self.device, self.dtype if pixels.is_floating_point() else None))
        encoded = encoded_images(query, local, self.config.decoder.memory_rows)
        return with_tokens(encoded) if self.config.similarity in IMAGE_TOKENS else encoded

    def encode_texts(self, texts: Sequence[str], *, batch_size: int | None = None) -> Encoded:
        """Encode texts, with gradients and dropout as the module's mode says.

        Args:
            texts: prompts or reports.
            batch_size: texts a pass; None is all at once. Passes hold texts of like length.

        Returns:
            memory ``[T, P, D]`` with each text's zero rows collapsed into one, query ``[T, D]``, row_count ``[T, P]``.
        """
        texts = list(texts) if not isinstance(texts, str) else texts
        if batch_size is None or len(texts) <= batch_size or isinstance(texts, str):
            return self._encode_texts(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        encoded = Encoded.cat([self._encode_texts([texts[i] for i in chunk]) for chunk in chunks])
        return encoded[torch.tensor(order, device=self.device).argsort()]

    def _encode_texts(self, texts: Sequence[str]) -> Encoded:
        tokens = self.text_encoder.tokenise(texts).to(self.device)
        sentence, words = self.text_encoder(tokens)
        rows = self.config.decoder.memory_rows
        encoded = encoded_texts(sentence, words, tokens.rows, self.config.text.max_tokens, rows)
        if self.config.similarity == "decoder":
            return encoded
        encoded = without_padding(encoded, tokens.rows)
        return with_tokens(encoded) if self.config.similarity in TEXT_TOKENS else encoded

    @property
    def text_rows(self) -> int:
        """Rows of a text memory before its zero rows are collapsed."""
        return self.config.text.max_tokens + (self.config.decoder.memory_rows == "global+local")

    def logits(
        self,
        images: Tensor | Encoded,
        texts: Sequence[str] | Encoded,
        *,
        seed: int | Tensor | None = None,
        image_offset: int = 0,
        text_offset: int = 0,
        backend: str = "auto",
        recompute: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """The two logit matrices that the training loss is made of.

        Args:
            images: pixels ``[B, 3, S, S]`` or encoded images.
            texts: T strings or encoded texts.
            seed: of the dropout masks while training; None draws one from torch's generator for both directions.
            image_offset, text_offset: global index of the first image and text, so that masks do not depend on shards.
            backend, recompute: as in `carzero.ops.pair_logits`.

        Returns:
            image-memory logits ``[B, T]`` and text-memory logits transposed to ``[B, T]``.
        """
        images = images if isinstance(images, Encoded) else self.encode_images(images)
        texts = texts if isinstance(texts, Encoded) else self.encode_texts(texts)
        if seed is None and self.training:
            seed = torch.randint(2**62, (1,), dtype=torch.int64, device=images.query.device)
        image_memory = self.decoder(
            images.memory,
            texts.query,
            row_count=images.row_count,
            seed=seed,
            direction=0,
            memory_offset=image_offset,
            query_offset=text_offset,
            backend=backend,
            recompute=recompute,
        )
        text_memory = self.decoder(
            texts.memory,
            images.query,
            row_count=texts.row_count,
            seed=seed,
            direction=1,
            memory_offset=text_offset,
            query_offset=image_offset,
            backend=backend,
            recompute=recompute,
            original_rows=None if texts.row_count is None else self.text_rows,
        )
        return image_memory, text_memory.transpose(0, 1)

    forward = logits

    @torch.no_grad()
    def text_bank(self, texts: Sequence[str] | Encoded, *, batch_size: int = 64) -> TextBank:
        """Encode and project texts once, to score any number of images against them."""
        with self.evaluating():
            encoded = texts if isinstance(texts, Encoded) else self.encode_texts(texts, batch_size=batch_size)
            return TextBank(encoded, self.decoder.project(encoded.memory, encoded.row_count))

    @torch.no_grad()
    def similarity(
        self,
        images: Tensor | Encoded,
        texts: Sequence[str] | Encoded | TextBank,
        *,
        batch_size: int = 32,
        backend: str = "auto",
    ) -> Tensor:
        """Zero-shot scores: raw logits, comparable between images for one text; neither probabilities nor cosines.

        Dropout is off and no gradient is kept, whatever the module's mode.

        Args:
            images: pixels ``[B, 3, S, S]`` or encoded images.
            texts: T strings, encoded texts, or a `text_bank`, which saves encoding and projecting them again.
            batch_size: images encoded and scored at a time.
            backend: as in `carzero.ops.pair_logits`.

        Returns:
            ``[B, T]``, the mean of the image-memory and the text-memory logit.
        """
        bank = texts if isinstance(texts, TextBank) else self.text_bank(texts)
        scores = []
        with self.evaluating():
            for start in range(0, max(len(images), 1), batch_size):
                part = images[start : start + batch_size]
                encoded = part if isinstance(part, Encoded) else self.encode_images(part)
                scores.append(self._score(encoded, bank, backend))
        return torch.cat(scores)

    def _score(self, images: Encoded, bank: TextBank, backend: str) -> Tensor:
        image_memory = self.decoder(
            images.memory, bank.encoded.query, row_count=images.row_count, direction=0, backend=backend
        )
        text_memory = self.decoder(bank.projected, images.query, direction=1, backend=backend)
        return (image_memory + text_memory.transpose(0, 1)) / 2

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout inside the block; afterwards every part is in the mode it was in."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, configuration and tokenizer into a folder; each file is replaced in one step.

        Args:
            folder: made where absent; other files in it stay. Receives ``model.safetensors``, ``config.json`` and
                ``tokenizer/``.
        """
        from .checkpoint import save_folder

        save_folder(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CARZero:
        """Open what `save_pretrained` wrote, in evaluation mode.

        Raises:
            UserError: a file is missing, damaged, or does not belong to the others.
        """
        from .checkpoint import load_folder

        return load_folder(Path(folder), device=device, dtype=dtype)

    def push_to_hub(
        self,
        repo: str,
        *,
        facts: CardFacts | None = None,
        private: bool = True,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Upload a carzero model",
    ) -> str:
        """Upload the files of `save_pretrained` with a model card; `carzero.load(repo)` opens them.

        Args:
            repo: ``"org/name"``; made where absent. Its card is replaced.
            facts: what the card says of training, figures and licence; `carzero.train.card.card_facts` reads them
                from a run.
            private: of a repository that is made now. Weights can give away training data, so sharing is a decision.
            token: None is the one of ``hf auth login``.
            revision: branch; None is the main one.
            message: of the commit.

        Returns:
            the commit's address.

        Raises:
            UserError: the model has no tokenizer, or the hub refuses or cannot be reached.
        """
        from .hub import push

        return push(self, repo, facts=facts, private=private, token=token, revision=revision, message=message)
