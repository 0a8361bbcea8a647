"""``carzero demo``: the whole way on drawn radiographs, or the same page from one's own images."""

from __future__ import annotations

import argparse
from pathlib import Path

from carzero.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for index.html, metrics.json and model/")
    parser.add_argument("--quick", action="store_true", help="a version of about 90 seconds that learns little")
    parser.add_argument("--seed", type=int, default=0, help="of drawings and training (default: 0)")
    parser.add_argument("--images", metavar="FOLDER", help="make the page from these images instead of drawing any")
    parser.add_argument("--weights", help="model for --images (default: the one of an earlier demo in --out)")
    parser.add_argument("--classes", metavar="A,B", help="findings asked for with --images (default: the drawn ones)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code (1: an image of --images could not be read)."""
    out = Path(args.out)
    if args.images is None:
        if args.weights or args.classes:
            raise UserError("--weights and --classes go with --images; without it the demo trains its own model.")
        from carzero.demo.recipe import FULL, QUICK
        from carzero.demo.run import run_drawn

        page = run_drawn(out, QUICK if args.quick else FULL, seed=args.seed)
        print(f"wrote {page.resolve()}")
        return 0
    weights = args.weights or out / "model"
    if not args.weights and not (out / "model").is_dir():
        raise UserError(
            f"There is no model in {out / 'model'}: give --weights, or run `carzero demo --out {out}` first."
        )
    return _own(out, args.images, weights, args.classes)


def _own(out: Path, folder: str, weights: str | Path, classes: str | None) -> int:
    from carzero.data.files import list_images
    from carzero.data.phantom import FINDINGS
    from carzero.demo.page import write_page
    from carzero.demo.page_context import own_context
    from carzero.models.checkpoint import load
    from carzero.prompts.sets import PromptSet
    from carzero.zeroshot.classify import ZeroShotClassifier

    files = list_images([folder])
    model = load(weights)
    prompts = PromptSet.from_findings([c for c in classes.split(",") if c.strip()] if classes else list(FINDINGS))
    classifier = ZeroShotClassifier(model, prompts)
    table = classifier.predict(files)
    paths = {file.name: file.path for file in files}
    images = [(name, paths[name]) for name in table["image"]]
    failures = [(str(row.iloc[0]), str(row.iloc[-1])) for _, row in classifier.failures.iterrows()]
    logits = table[list(prompts.classes)].to_numpy()
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html" if not (out / "metrics.json").exists() else out / "images.html"
    write_page(page, own_context(model, images, prompts.classes, prompts.texts, logits, failures))
    print(f"wrote {page.resolve()}")
    return 1 if failures else 0
