"""`carzero convert`: the published checkpoint into a model folder."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import get_args

from carzero.errors import UserError

from .config import PUBLISHED_TEXT_ENCODER, TextMode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="checkpoint in the published layout")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FOLDER_OR_ID",
        help=f"tokenizer that goes with it; for the published checkpoint that of {PUBLISHED_TEXT_ENCODER}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the model into")
    parser.add_argument(
        "--text-mode",
        choices=get_args(TextMode),
        default="default",
        help="how texts are cleaned: 'published' drops one-word sentences and cuts decimals, as the authors' code does",
    )


def run(args: argparse.Namespace) -> int:
    """Read the checkpoint, write the folder, say what was dropped."""
    from .checkpoint import assemble, read_published
    from .tokenizer import load_tokenizer

    start = time.perf_counter()
    if not args.checkpoint.is_file():
        raise UserError(f"carzero convert: there is no file {args.checkpoint}.")
    upstream = read_published(args.checkpoint)
    config = dataclasses.replace(upstream.config, text_mode=args.text_mode)
    model = assemble(config, upstream.tensors, f"carzero convert: {args.checkpoint}")
    model.text_encoder.set_tokenizer(load_tokenizer(args.tokenizer))
    model.save_pretrained(args.out)
    values = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.checkpoint.name}: {values:,} values kept; dropped {upstream.dropped()}")
    print(f"Wrote {args.out} in {time.perf_counter() - start:.1f} s. Open it with carzero.load({str(args.out)!r}).")
    return 0
