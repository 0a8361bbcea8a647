"""The gradient of one step: of the whole global batch, however few of its images are encoded at a time.

The contrastive loss of a batch is no sum over parts of it, so gradient accumulation would train on smaller batches.
Here the encoders run twice instead where the batch is cut: once without a graph, for the features that the loss needs;
then part by part with one, to send the features' gradients on. The decoder's dropout follows counters, the encoders'
is drawn again from the generator's state of the first pass, so both passes see the same masks. A batch norm (in the
convolutional stem of the small preset) sees the images of its own part and rank, and moves its averages in both passes.

Source: Gao et al., "Scaling deep contrastive learning batch size under memory limited setup" (RepL4NLP 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from carzero.models.carzero import CARZero
from carzero.models.encoded import Encoded
from carzero.train.ranks import Ranks
from carzero.train.sharded import sharded_contrastive_loss


@dataclass(frozen=True)
class StepInputs:
    """This rank's part of a global batch.

    Args:
        pixels: ``[B_local, 3, S, S]`` on the device.
        texts: those of the first image first, ``per_image`` of each.
        per_image: texts of an image.
        total_images: B of the global batch.
        positives: bool ``[B, T]`` of the global batch, this rank's rows of it, or None; see
            `carzero.train.sharded.sharded_contrastive_loss`.
        seed: of the decoder's dropout, the same on every rank.
    """

    pixels: Tensor
    texts: list[str]
    per_image: int
    total_images: int
    positives: Tensor | tuple[Tensor, Tensor] | None
    seed: int


def accumulate_gradients(
    model: CARZero,
    inputs: StepInputs,
    ranks: Ranks,
    *,
    micro_batch: int | None,
    dtype: torch.dtype,
    backend: str,
    backward: Callable[[Tensor], None] = Tensor.backward,
    sharded: bool = False,
) -> Tensor:
    """Add the gradient of the global batch's loss to the model's parameters on every rank; returns the loss, detached.

    Args:
        micro_batch: images that are encoded at a time; None: all of this rank's.
        dtype: of autocast; float32 is none.
        backend: of the all-pairs op.
        backward: called with this rank's share of the loss; scales it where the precision needs that.
        sharded: the weights are FSDP2's, which adds up the gradients of all ranks itself.
    """
    size = micro_batch or max(1, len(inputs.pixels))
    parts = [slice(i, i + size) for i in range(0, len(inputs.pixels), size)]
    if len(parts) <= 1:
        loss = _loss(model, *_encode(model, inputs, slice(None), dtype), inputs, ranks, dtype, backend)
        backward(loss)
    else:
        loss = _in_two_passes(model, inputs, parts, ranks, dtype, backend, backward)
    if not sharded:
        sum_gradients(model, ranks)
    return ranks.sum(loss.detach())


def sum_gradients(model: torch.nn.Module, ranks: Ranks) -> None:
    """Every parameter's gradient summed over ranks, in a few large messages."""
    if ranks.world == 1:
        return
    for bucket in _buckets([p for p in model.parameters() if p.requires_grad]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        total = ranks.sum(flat)
        for parameter, grad in zip(bucket, total.split([p.numel() for p in bucket])):
            parameter.grad = grad.view_as(parameter).clone()


def _buckets(parameters: list[torch.nn.Parameter], most: int = 2**24) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if bucket and (sum(p.numel() for p in bucket) + parameter.numel() > most or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _encode(model: CARZero, inputs: StepInputs, part: slice, dtype: torch.dtype) -> tuple[Encoded, Encoded]:
    pixels = inputs.pixels[part]
    first = part.start or 0
    texts = inputs.texts[first * inputs.per_image : (first + len(pixels)) * inputs.per_image]
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        return model.encode_images(pixels), model.encode_texts(texts)


def _loss(
    model: CARZero, images: Encoded, texts: Encoded, inputs: StepInputs, ranks: Ranks, dtype: torch.dtype, backend: str
) -> Tensor:
    with torch.autocast(images.query.device.type, dtype, enabled=dtype != torch.float32):
        return sharded_contrastive_loss(
            model.decoder, images, texts, ranks, total_images=inputs.total_images,
            total_texts=inputs.total_images * inputs.per_image, positives=inputs.positives, seed=inputs.seed,
            original_text_rows=model.text_rows if texts.row_count is not None else None, backend=backend,
        )  # fmt: skip


def _in_two_passes(
    model: CARZero,
    inputs: StepInputs,
    parts: list[slice],
    ranks: Ranks,
    dtype: torch.dtype,
    backend: str,
    backward: Callable[[Tensor], None],
) -> Tensor:
    devices = [inputs.pixels.device] if inputs.pixels.is_cuda else []
    states, encoded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(devices))
            encoded.append(_encode(model, inputs, part, dtype))
    images, texts = (_leaf(Encoded.cat([pair[side] for pair in encoded])) for side in (0, 1))
    loss = _loss(model, images, texts, inputs, ranks, dtype, backend)
    backward(loss)
    after = _random_state(devices)
    for part, state in zip(parts, states):
        _set_random_state(state, devices)
        first = part.start
        for again, whole, count in zip(_encode(model, inputs, part, dtype), (images, texts), (1, inputs.per_image)):
            assert whole.memory.grad is not None
            assert whole.query.grad is not None
            rows = slice(first * count, first * count + len(again))
            # rows that only longer texts of the batch have are no rows of this part
            memory = whole.memory.grad[rows, : again.memory.shape[1]]
            query = whole.query.grad[rows, : again.query.shape[1]]
            torch.autograd.backward([again.memory, again.query], [memory, query])
    _set_random_state(after, devices)
    return loss


def _leaf(encoded: Encoded) -> Encoded:
    memory, query = (t.detach().requires_grad_() for t in (encoded.memory, encoded.query))
    return Encoded(memory, query, encoded.row_count)


def _random_state(devices: list[torch.device]) -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices]


def _set_random_state(state: tuple[Tensor, list[Tensor]], devices: list[torch.device]) -> None:
    torch.set_rng_state(state[0])
    for device, value in zip(devices, state[1]):
        torch.cuda.set_rng_state(value, device)
