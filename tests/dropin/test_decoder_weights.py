"""`decoder_weights` of real decoders: torch's own, BLIP's as transformers has it, MedKLIP's kind."""

from __future__ import annotations

import pytest
import torch
from published_fusion import TransformerDecoder, TransformerDecoderLayer
from torch import Tensor, nn

from carzero.dropin import decoder_weights
from carzero.errors import UserError
from carzero.ops import pair_logits

M, Q, T, P, D = 3, 4, 5, 7, 32


def shaken(module: nn.Module) -> nn.Module:
    """In float64, with no norm at 1 and no bias at 0, where a mistake would not show."""
    module = module.double().eval()
    for p in module.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return module


def all_pairs(memory: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Memories ``[M Q, P, D]`` and queries ``[M Q, T, D]`` of every pair, as a plain module wants them."""
    return memory.repeat_interleave(len(queries), 0), queries.repeat(len(memory), *[1] * (queries.dim() - 1))


def check(logits: Tensor, truth: Tensor, leaves: list[Tensor]) -> None:
    """Results and the gradients of the leaves that the truth depends on."""
    torch.testing.assert_close(logits, truth, rtol=1e-11, atol=1e-12)
    cotangent = torch.randn_like(truth)
    wanted = torch.autograd.grad(truth, leaves, cotangent, allow_unused=True)
    used = [leaf for leaf, w in zip(leaves, wanted) if w is not None]
    ours = torch.autograd.grad(logits, used, cotangent)
    for g, w in zip(ours, (w for w in wanted if w is not None), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("last_norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_torch_decoder(activation: str, norm_first: bool, last_norm: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(D, 4, 48, 0.1, activation, batch_first=True, norm_first=norm_first, bias=bias)
    module = shaken(nn.TransformerDecoder(layer, 2, nn.LayerNorm(D) if last_norm else None))
    head = shaken(nn.Linear(D, 2))
    memory = torch.randn(M, P, D).double().requires_grad_()
    queries = torch.randn(Q, T, D).double().requires_grad_()
    mask = torch.arange(T) < torch.tensor([5, 1, 3, 4])[:, None]
    rows, tokens = all_pairs(memory, queries)
    truth = head(module(tokens, rows, tgt_key_padding_mask=~mask.repeat(M, 1))).unflatten(0, (M, Q))
    truth = truth.masked_fill(~mask[:, :, None], 0.0)
    weights = decoder_weights(module, head)
    logits = pair_logits(memory, queries, weights, query_mask=mask)
    check(logits, truth, [memory, queries, *module.parameters(), *head.parameters()])


def test_blip_of_transformers() -> None:
    """The public BLIP: T word pieces with self-attention, image rows of another width, the first token read."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    text = {
        "vocab_size": 60, "hidden_size": D, "encoder_hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 16, "projection_dim": 16, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    model = shaken(BlipForImageTextRetrieval(config))
    pixels = torch.randn(M, 3, 16, 16).double()
    ids = torch.randint(3, 60, (Q, T))
    mask = torch.arange(T) < torch.tensor([5, 2, 3, 4])[:, None]
    pixel_rows, token_rows = all_pairs(pixels, ids)
    answer = model(input_ids=token_rows, pixel_values=pixel_rows, attention_mask=mask.repeat(M, 1).long())
    truth = answer.itm_score.unflatten(0, (M, Q))

    memory = model.vision_model(pixel_values=pixels)[0]
    queries = model.text_encoder.embeddings(input_ids=ids)
    weights = decoder_weights(model.text_encoder.encoder.layer, model.itm_head, readout="first")
    logits = pair_logits(memory, queries, weights, query_mask=mask)
    assert weights.spec.memory_width == 48
    check(logits, truth, list(model.parameters()))


def test_medklip_kind() -> None:
    """All findings are the tokens of one query; memory rows are not normalised; two outputs a finding."""
    torch.manual_seed(0)
    module = shaken(TransformerDecoder([TransformerDecoderLayer(D, 4, 48, 0.1) for _ in range(2)], nn.LayerNorm(D)))
    head = shaken(nn.Linear(D, 2))
    memory = torch.randn(M, P, D).double().requires_grad_()
    findings = torch.randn(9, D).double().requires_grad_()
    truth = head(module(findings.unsqueeze(1).repeat(1, M, 1), memory.transpose(0, 1))[0]).transpose(0, 1)
    logits = pair_logits(memory, findings.unsqueeze(0), decoder_weights(module, head))
    check(logits.squeeze(1), truth, [memory, findings, *module.parameters(), *head.parameters()])


def test_what_the_op_does_not_have_is_named() -> None:
    head = nn.Linear(D, 1)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, 4, 48), 1)
    with pytest.raises(UserError, match="Linear has no layers"):
        decoder_weights(head, head)
    with pytest.raises(UserError, match="a layer Linear has no multihead_attn"):
        decoder_weights(nn.ModuleList([head]), head)
    with pytest.raises(UserError, match=r"the head must be nn\.Linear.* got \['Linear', 'GELU', 'Linear'\]"):
        decoder_weights(decoder, nn.Sequential(nn.Linear(D, 4), nn.GELU(), nn.Linear(4, 1)))
    uneven = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, 4, 48), 1)
    uneven.layers[0].norm3.eps = 1e-6
    with pytest.raises(UserError, match=r"one eps of LayerNorm serves all layers, got \[1e-06, 1e-05\]"):
        decoder_weights(uneven, head)
    # one layer, not a decoder of copies: torch gives copies of a layer whose activation is a module ReLU in its place
    tanh = [nn.TransformerDecoderLayer(D, 4, 48, activation=nn.GELU(approximate="tanh"))]
    with pytest.raises(UserError, match="this decoder's activation is GELU"):
        decoder_weights(tanh, head)
    after = TransformerDecoderLayer(D, 4, 48, 0.1)
    after.normalize_before = False
    with pytest.raises(UserError, match="drops what self-attention gave"):
        decoder_weights([after], head)
