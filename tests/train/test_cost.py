"""The cost model against real modules: numbers of weights, counted operations, bytes that a backward keeps."""

from __future__ import annotations

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from carzero.bench.published import PublishedDecoder
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig, DecoderConfig
from carzero.models.decoder import SimRDecoder
from carzero.train.cost import IMAGE, TEXT, StepCost, Tower


def numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_those_of_the_model() -> None:
    with torch.device("meta"):
        model = CARZero(CARZeroConfig.carzero())
    vision, text = model.image_encoder.model, model.text_encoder.model
    assert (IMAGE.weights, IMAGE.outside) == (numbers(vision), numbers(vision) - numbers(vision.blocks))
    assert (TEXT.weights, TEXT.outside) == (numbers(text), numbers(text) - numbers(text.encoder.layer))
    assert StepCost(1).decoder_weights == numbers(model.decoder)


def test_operations_of_an_encoder_are_those_counted() -> None:
    vision = timm.create_model("vit_base_patch16_224", embed_dim=64, depth=3, num_heads=4, img_size=96, num_classes=0)
    blocks = numbers(vision.blocks)
    tower = Tower(64, 3, 256, tokens=37, weights=numbers(vision), outside=numbers(vision) - blocks)
    tokens = torch.randn(2, 37, 64)
    # the counter does not know the CPU's fused attention
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        vision.blocks(tokens)
    # biases and norms are weights without multiplications
    assert abs(counter.get_total_flops() / 2 - tower.forward_flops) < 0.02 * tower.forward_flops


def test_operations_of_the_decoder_are_those_counted() -> None:
    config = DecoderConfig(width=64, layers=3, heads=4, ffn=96, head_hidden=(80, 48, 32), dropout=0.0)
    # the published module in plain torch: the op itself is one operation to the counter
    decoder = PublishedDecoder(SimRDecoder(config).weights(), dropout=0.0).eval()
    memories, queries, rows = 3, 40, 17
    cost = StepCost(1, decoder=config.spec, image=Tower(64, 1, 1, tokens=rows, weights=0))
    with FlopCounterMode(display=False) as counter:
        decoder(torch.randn(memories, rows, 64), torch.randn(queries, 64))
    # it has the first layer's query projection for every pair, and keys and values for every memory
    want = memories * queries * (cost.pair_flops(rows) + 2 * 64 * 64) + memories * rows * 4 * 3 * 64 * 64
    assert abs(counter.get_total_flops() - want) < 0.02 * want


def test_bytes_kept_for_a_backward_are_near_those_kept() -> None:
    vision = timm.create_model("vit_base_patch16_224", embed_dim=64, depth=3, num_heads=4, img_size=96, num_classes=0)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in vision.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = 4
    tokens = torch.randn(images, 37, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        held = vision.blocks(tokens)
    assert held is not None
    tower = Tower(64, 3, 256, tokens=37, weights=0)
    # bfloat16 copies of the weights are kept as well
    copies = 2 * sum(p.numel() for p in vision.blocks.parameters() if p.ndim == 2)
    assert 0.8 < (sum(kept.values()) - copies) / (images * tower.activation_bytes(2)) < 1.25


def test_the_op_adds_at_most_a_twentieth_to_the_peak_at_1024() -> None:
    """The aim of the byte model; the tile is the largest that was measured."""
    cost = StepCost(1024)
    assert cost.op_extra_bytes() / sum(cost.memory_bytes().values()) < 0.05
    # and it does not grow with the batch
    assert StepCost(4096).op_extra_bytes() == cost.op_extra_bytes()
