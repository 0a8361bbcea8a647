"""``carzero explain``: pictures of where the model looked on radiographs for each prompt."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from carzero.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="PNG, JPEG or DICOM files, or folders")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompts", metavar="FILE", help="prompts as for `carzero classify`; the first of each class")
    prompts.add_argument("--classes", metavar="A,B", help='findings, separated by commas, asked as "There is A"')
    parser.add_argument("--weights", required=True, help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures, one per image and class")


def run(args: argparse.Namespace) -> int:
    """Write ``<image>.<class>.png`` files; returns the exit code (1: an image could not be read)."""
    from carzero.data.decode import ImageError
    from carzero.data.files import list_images
    from carzero.prompts.sets import PromptSet, load_prompts

    if args.prompts is not None:
        prompts = load_prompts(args.prompts)
    else:
        prompts = PromptSet.from_findings([name for name in args.classes.split(",") if name.strip()])
    images = list_images(args.images)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be made: {error.strerror}.") from None
    from carzero.models.checkpoint import load
    from carzero.zeroshot.explain import explain_prompts

    model = load(args.weights, tokenizer=args.tokenizer)
    failed = 0
    for image in images:
        try:
            explanations = explain_prompts(model, image.path, [texts[0] for texts in prompts.prompts])
        except ImageError as error:
            print(f"carzero explain: {error}", file=sys.stderr)
            failed += 1
            continue
        for name, explanation in zip(prompts.classes, explanations):
            explanation.save(out / f"{_file_name(image.name)}.{_file_name(name)}.png")
    written = (len(images) - failed) * len(prompts)
    print(f"{out}: {written} pictures of {len(images) - failed} images x {len(prompts)} classes. Not a medical device.")
    return 1 if failed else 0


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
