"""The published computation in the plainest torch: nn.MultiheadAttention in both directions, pooling by a loop.

Written from the facts of the published code, to compare with; never fast. Also the published checkpoint's layout.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carzero import CARZero
from carzero.models.decoder import SimRDecoder
from carzero.models.text import clean_text
from carzero.models.tokenizer import vocabulary


def perturbed(model: CARZero, scale: float = 0.15) -> CARZero:
    """Noise on every parameter, so that biases, norms and deep layers show in the scores."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


class PublishedLayer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.multihead_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        attended, weights = self.multihead_attn(self.norm2(queries), memory, memory)
        queries = queries + attended
        return queries + self.linear2(F.relu(self.linear1(self.norm3(queries)))), weights


class PublishedDecoder(nn.Module):
    """memory ``[M, P, D]``, queries ``[Q, D]`` -> logits ``[M, Q]`` and L maps ``[M, Q, P]``."""

    def __init__(self, width: int, heads: int, ffn: int, layers: int, head_hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(PublishedLayer(width, heads, ffn) for _ in range(layers))
        self.decoder.norm = self.decoder_norm
        widths = (width, *head_hidden, 1)
        head: list[nn.Module] = []
        for i, o in itertools.pairwise(widths):
            head += [nn.Linear(i, o), nn.ReLU(), nn.Dropout(0.0)]
        self.mlp_head = nn.Sequential(*head[:-2])

    def forward(self, memory: Tensor, queries: Tensor) -> tuple[Tensor, list[Tensor]]:
        rows = self.decoder_norm(memory.transpose(0, 1))
        x = self.decoder_norm(queries.unsqueeze(1).repeat(1, len(memory), 1))
        maps = []
        for layer in self.decoder.layers:
            x, weights = layer(x, rows)
            maps.append(weights)
        return self.mlp_head(self.decoder.norm(x)).squeeze(-1).transpose(0, 1), maps


def published_decoder(decoder: SimRDecoder) -> PublishedDecoder:
    """The published module with our decoder's weights."""
    spec = decoder.spec
    hidden = spec.head_hidden if spec.head == "mlp" else ()
    module = PublishedDecoder(spec.width, spec.heads, spec.ffn, spec.layers, hidden).to(decoder.norm.weight.dtype)
    module.load_state_dict(decoder_state(decoder), strict=False)
    return module.eval()


def loop_pool(hidden: Tensor, ids: Tensor, vocab: list[str]) -> tuple[Tensor, Tensor]:
    """Word pooling as published: one piece after the other, each layer by itself."""
    layers, texts, pieces, width = hidden.shape
    words = torch.zeros(layers, texts, pieces, width, dtype=hidden.dtype)
    for layer in range(layers):
        for text in range(texts):
            row = -1
            for piece in range(pieces):
                name = vocab[int(ids[text, piece])]
                if row < 0 or not name.startswith("##"):
                    row += 1
                words[layer, text, row] += hidden[layer, text, piece]
                if name == "[SEP]":
                    break
    return words.sum(0), words.mean(2).sum(0)


def published_encode_images(model: CARZero, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Global vector and patch tokens, block by block."""
    vit = model.image_encoder.model
    tokens = vit.patch_embed(pixels) + vit.pos_embed[:, 1:]
    cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(pixels), -1, -1)
    tokens = torch.cat((cls, tokens), 1)
    for block in vit.blocks:
        tokens = block(tokens)
    tokens = vit.norm(tokens)
    return tokens[:, 0], tokens[:, 1:]


def published_encode_texts(model: CARZero, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Sentence vectors and all `max_tokens` rows, BERT run over the padding too."""
    encoder = model.text_encoder
    cleaned = [clean_text(text, encoder.mode) for text in texts]
    limit = encoder.config.max_tokens
    tokens = encoder.tokenizer(cleaned, return_tensors="pt", truncation=True, padding="max_length", max_length=limit)
    output = encoder.model(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
    )
    hidden = torch.stack(output.hidden_states[-encoder.config.last_layers :])
    words, sentence = loop_pool(hidden, tokens["input_ids"], vocabulary(encoder.tokenizer))
    return sentence, words


@torch.no_grad()
def published_similarity(model: CARZero, pixels: Tensor, texts: list[str]) -> Tensor:
    """One image at a time, as the published inference does."""
    decoder = published_decoder(model.decoder)
    image_query, image_local = published_encode_images(model, pixels)
    text_query, text_words = published_encode_texts(model, texts)
    image_memory = torch.cat((image_query.unsqueeze(1), image_local), 1)
    text_memory = torch.cat((text_query.unsqueeze(1), text_words), 1)
    rows = []
    for image in range(len(pixels)):
        one = slice(image, image + 1)
        rows.append((decoder(image_memory[one], text_query)[0] + decoder(text_memory, image_query[one])[0].T) / 2)
    return torch.cat(rows)


_LAYER = {
    "in_proj_weight": "multihead_attn.in_proj_weight",
    "in_proj_bias": "multihead_attn.in_proj_bias",
    "out_proj_weight": "multihead_attn.out_proj.weight",
    "out_proj_bias": "multihead_attn.out_proj.bias",
}


def decoder_state(decoder: SimRDecoder) -> OrderedDict[str, Tensor]:
    """Our decoder's weights under the published names, the dead ones not included."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in decoder.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "norm":
            state[f"decoder_norm.{rest}"] = state[f"decoder.norm.{rest}"] = value
        elif first == "head":
            index, _, kind = rest.partition(".")
            state[f"mlp_head.{3 * int(index)}.{kind}"] = value
        else:
            layer, _, parameter = rest.partition(".")
            theirs = _LAYER.get(parameter) or ".".join(parameter.rsplit("_", 1))
            state[f"decoder.layers.{layer}.{theirs}"] = value
    return state


def checkpoint_state(model: CARZero, *, dead: bool = True) -> OrderedDict[str, Tensor]:
    """A whole model in the published layout, with the dead keys that every published checkpoint holds."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in model.text_encoder.model.state_dict().items():
        state[f"CARZero.text_encoder.model.{name}"] = value
    for name, value in model.image_encoder.model.state_dict().items():
        state[f"CARZero.img_encoder.model.{name}"] = value
    for name, value in decoder_state(model.decoder).items():
        state[f"CARZero.fusion_module.{name}"] = value
    if not dead:
        return state
    width, text = model.decoder.spec.width, "CARZero.text_encoder.model."
    state["CARZero.fusion_module.logit_scale"] = torch.tensor(2.6593)
    for layer in range(model.decoder.spec.layers):
        own = f"CARZero.fusion_module.decoder.layers.{layer}."
        for kind, value in nn.MultiheadAttention(width, 1).state_dict().items():
            state[f"{own}self_attn.{kind}"] = value
        state[f"{own}norm1.weight"], state[f"{own}norm1.bias"] = torch.ones(width), torch.zeros(width)
    state[f"{text}embeddings.position_ids"] = torch.arange(model.config.text.max_positions).unsqueeze(0)
    state[f"{text}pooler.dense.weight"], state[f"{text}pooler.dense.bias"] = (
        torch.randn(width, width),
        torch.randn(width),
    )
    return state
