"""BLIP's and ALBEF's image-text matching head, over all pairs of a batch and not one sampled negative each.

The model is transformers' `BlipForImageTextRetrieval`. Three lines change: the import, and the two of `score_after`.
"""

from __future__ import annotations

import argparse

import torch
from drawn import WORDS, Change, measure, radiographs, word_ids
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from carzero.dropin import decoder_weights, pair_logits


def score_before(model: BlipForImageTextRetrieval, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """``[B, T, 2]``: every text runs with every image through the whole text encoder."""
    columns = []
    for words, there in zip(ids, mask):
        rows = model.text_encoder(
            input_ids=words.expand(len(images), -1), attention_mask=there.long().expand(len(images), -1),
            encoder_hidden_states=images,
        )[0]  # fmt: skip
        columns.append(model.itm_head(rows[:, 0]))
    return torch.stack(columns, 1)


def score_after(model: BlipForImageTextRetrieval, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The same."""
    weights = decoder_weights(model.text_encoder.encoder.layer, model.itm_head, readout="first")
    return pair_logits(images, model.text_encoder.embeddings(input_ids=ids), weights, query_mask=mask)


def run(pairs: int = 12, width: int = 96, rounds: int = 3) -> Change:
    """The model before and after the change."""
    torch.manual_seed(0)
    pixels, reports = radiographs(pairs)
    ids, lengths, vocabulary = word_ids(reports)
    mask = torch.arange(WORDS) < lengths.unsqueeze(1)
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "encoder_hidden_size": 2 * width,
        "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 2 * width, "intermediate_size": 4 * width, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 8,
    }  # fmt: skip
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).eval()
    images = model.vision_model(pixel_values=pixels.expand(-1, 3, -1, -1))[0].detach().requires_grad_()
    return measure(
        "ALBEF, BLIP", 3,
        lambda: score_before(model, images, ids, mask),
        lambda: score_after(model, images, ids, mask),
        lambda: model.vision_model(pixel_values=pixels.expand(-1, 3, -1, -1))[0],
        rounds,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12, help="images, and reports (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    print(run(arguments.pairs, rounds=arguments.rounds))
