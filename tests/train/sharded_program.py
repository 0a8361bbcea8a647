"""Run by test_sharded by torchrun: a global batch on W ranks; its loss, gradients and bytes on the wire, to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig, DecoderConfig
from carzero.models.decoder import SimRDecoder
from carzero.models.encoded import Encoded
from carzero.models.tokenizer import word_tokenizer
from carzero.train.engine import shard
from carzero.train.loss import contrastive_loss
from carzero.train.ranks import Ranks, join, leave
from carzero.train.sharded import sharded_contrastive_loss
from carzero.train.step import StepInputs, accumulate_gradients

D, IMAGE_ROWS, TEXT_ROWS = 32, 50, 41


def batch(images: int, per_image: int, dtype: torch.dtype) -> tuple[Encoded, Encoded, torch.Tensor]:
    """Images, texts with collapsed padding, and positives with more than the diagonal."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    texts = images * per_image
    count = torch.ones(texts, TEXT_ROWS, dtype=torch.int32)
    count[:, -1] = torch.randint(1, 30, (texts,), generator=generator)
    positives = torch.eye(images, dtype=torch.bool).repeat_interleave(per_image, 1)
    positives |= torch.rand(images, texts, generator=generator) < 0.2
    return (
        Encoded(draw(images, IMAGE_ROWS, D), draw(images, D)),
        Encoded(draw(texts, TEXT_ROWS, D), draw(texts, D), count),
        positives,
    )


def run(ranks: Ranks, images: int, per_image: int, dtype: torch.dtype, multi: bool, dropout: float) -> dict:
    """Loss and gradients of the whole batch, as this run's ranks make them."""
    torch.manual_seed(0)
    config = DecoderConfig(width=D, layers=2, heads=2, ffn=40, head_hidden=(24, 16, 8), dropout=dropout, init_std=0.3)
    decoder = SimRDecoder(config).to(dtype).train()
    whole_images, whole_texts, positives = batch(images, per_image, dtype)
    part = ranks.part(images)
    mine, said = part, slice(part.start * per_image, part.stop * per_image)
    loss = sharded_contrastive_loss(
        decoder, whole_images[mine], whole_texts[said], ranks, total_images=images, total_texts=images * per_image,
        positives=positives if multi else None, seed=11 if dropout else None, original_text_rows=TEXT_ROWS + 29,
    )  # fmt: skip
    loss.backward()
    leaves = {
        "image memory": whole_images.memory, "image query": whole_images.query, "text memory": whole_texts.memory,
        "text query": whole_texts.query, **dict(decoder.named_parameters()),
    }  # fmt: skip
    return {
        "loss": ranks.sum(loss.detach()),
        **{name: ranks.sum(torch.zeros_like(t) if t.grad is None else t.grad) for name, t in leaves.items()},
    }


def plain(images: int, per_image: int, dtype: torch.dtype, multi: bool, dropout: float) -> dict:
    """The same by `contrastive_loss` in one process."""
    torch.manual_seed(0)
    config = DecoderConfig(width=D, layers=2, heads=2, ffn=40, head_hidden=(24, 16, 8), dropout=dropout, init_std=0.3)
    decoder = SimRDecoder(config).to(dtype).train()
    a, b, positives = batch(images, per_image, dtype)
    seed = 11 if dropout else None
    loss = contrastive_loss(
        decoder(a.memory, b.query, seed=seed),
        decoder(b.memory, a.query, row_count=b.row_count, direction=1, seed=seed).T,
        positives if multi else None,
    )
    loss.backward()
    leaves = {
        "image memory": a.memory, "image query": a.query, "text memory": b.memory, "text query": b.query,
        **dict(decoder.named_parameters()),
    }  # fmt: skip
    return {"loss": loss.detach(), **{name: t.grad for name, t in leaves.items()}}


SAID = ["there is no mass", "a large left mass", "effusion", "mass and effusion", "no effusion", "a mass", "left"]


def tiny_model() -> CARZero:
    """A whole model in float64, with dropout in its decoder."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(SAID)
    config = CARZeroConfig.tiny(
        vocab_size=len(tokenizer), width=D, depth=2, heads=2, layers=2, image_size=32, dropout=0.1
    )
    model = CARZero(config, tokenizer).double().train()
    for module in model.text_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            # each process has a generator of its own for it
            module.p = 0.0
    return model


def seven_images() -> torch.Tensor:
    return torch.randn(len(SAID), 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class WholeStep(torch.nn.Module):
    """Encoders, decoder and loss in one forward, as torch's DDP expects; it averages, so the share counts W times."""

    def __init__(self, model: CARZero, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.ranks = model, ranks

    def forward(self, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
        share = sharded_contrastive_loss(
            self.model.decoder, self.model.encode_images(pixels), self.model.encode_texts(texts), self.ranks,
            total_images=len(SAID), total_texts=len(SAID), seed=5, original_text_rows=self.model.text_rows,
            backend="torch",
        )  # fmt: skip
        return share * self.ranks.world


def ddp_step(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Loss and every gradient of seven pairs under DistributedDataParallel."""
    step, part = WholeStep(tiny_model(), ranks), ranks.part(len(SAID))
    # the towers' parameters that no output depends on stay without a gradient
    wrapped = DistributedDataParallel(step, find_unused_parameters=True) if ranks.world > 1 else step
    loss = wrapped(seven_images()[part], SAID[part])
    loss.backward()
    grads = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    return {"loss": ranks.sum(loss.detach()) / ranks.world, **grads}


def plain_step() -> dict[str, torch.Tensor]:
    """The same in one process, by `contrastive_loss`."""
    model = tiny_model()
    logits = model.logits(model.encode_images(seven_images()), model.encode_texts(SAID), seed=5, backend="torch")
    loss = contrastive_loss(*logits)
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


CASES = [
    # images, texts of each, multi-positive, dropout
    (7, 1, False, 0.0),
    (7, 2, True, 0.1),
    # fewer images than ranks
    (3, 1, True, 0.1),
]


#: Which argument of an operation of torch's is handed over.
HANDED = {"allreduce_": 0, "_allgather_base_": 1, "_reduce_scatter_base_": 1}


class Wire(TorchDispatchMode):
    """Bytes that this rank hands to the collectives inside, by their kind, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_kind = dict.fromkeys(HANDED, 0)
        self.largest = 0

    @property
    def bytes(self) -> int:
        return sum(self.by_kind.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = str(function).partition(".")
        name = name.split(".")[0]
        if space == "c10d" and name != "barrier":
            handed = args[HANDED[name]]
            for tensor in handed if isinstance(handed, list | tuple) else [handed]:
                size = tensor.numel() * tensor.element_size()
                self.by_kind[name] += size
                self.largest = max(self.largest, size)
        return function(*args, **(kwargs or {}))


def step_bytes(ranks: Ranks, sharded: bool, micro_batch: int | None) -> dict[str, int]:
    """A whole step of a model of width 32 with 8 images, by kind; and its numbers of weights by FSDP2's units."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(["a mass"])
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), width=32, depth=2, heads=2, layers=1, image_size=32)
    model = CARZero(config, tokenizer).train()
    blocks = [*model.image_encoder.model.blocks, *model.text_encoder.model.encoder.layer]
    units = {
        "blocks": sum(p.numel() for block in blocks for p in block.parameters()),
        "decoder": sum(p.numel() for p in model.decoder.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "all": sum(p.numel() for p in model.parameters()),
    }
    if sharded:
        shard(model)
    images = ranks.sizes(8)[ranks.rank]
    inputs = StepInputs(torch.zeros(images, 3, 32, 32), ["a mass"] * images, 1, 8, None, seed=1)
    with Wire() as wire:
        accumulate_gradients(
            model, inputs, ranks, micro_batch=micro_batch, dtype=torch.float32, backend="torch", sharded=sharded,
            backward=lambda loss: (loss * ranks.world if sharded else loss).backward(),
        )  # fmt: skip
    return {**wire.by_kind, **units}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join()
    found = {}
    for dtype in (torch.float64, torch.float32):
        for case in CASES:
            found[str(dtype), case] = run(ranks, case[0], case[1], dtype, case[2], case[3])
    images, per_image = 16, 1
    decoder = SimRDecoder(DecoderConfig(width=D, layers=1, heads=2, ffn=40, head="linear")).eval()
    whole_images, whole_texts, _ = batch(images, per_image, torch.float32)
    part = ranks.part(images)
    with Wire() as wire:
        sharded_contrastive_loss(
            decoder, whole_images[part], whole_texts[part], ranks, total_images=images, total_texts=images
        ).backward()
    wired = {"bytes": wire.bytes, "largest": wire.largest}
    cases = [(False, None)] + [(True, None), (True, 2)] * (ranks.world > 1)
    ddp = ddp_step(ranks)
    steps = {case: step_bytes(ranks, *case) for case in cases}
    if ranks.first:
        torch.save({"found": found, "steps": steps, "ddp": ddp, **wired}, out)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
