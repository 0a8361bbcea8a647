"""``carzero explain``: pictures of where the model looked on radiographs for each prompt, and whether it was right."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from carzero.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from carzero.evaluate.boxes import BoxSet
    from carzero.evaluate.grounding import MapScore
    from carzero.prompts.sets import PromptSet
    from carzero.zeroshot.explain import Explanation


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="PNG, JPEG or DICOM files, or folders")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompts", metavar="FILE", help="prompts as for `carzero classify`; the first of each class")
    prompts.add_argument("--classes", metavar="A,B", help='findings, separated by commas, asked as "There is A"')
    parser.add_argument("--weights", required=True, help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for pictures (one per image and class) and tables"
    )
    parser.add_argument("--layers", metavar="0,1", help="decoder layers to average (default: all, as published)")
    parser.add_argument("--heads", metavar="0,1", help="attention heads to average (default: all, as published)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="T",
        help="of regions.csv, a share of the maximum (default: 0.5)",
    )
    parser.add_argument("--patches", action="store_true", help="show patches as they are, not smoothed")
    parser.add_argument("--words", action="store_true", help="write words.csv: which words each image attended to")
    parser.add_argument(
        "--boxes", metavar="FILE", help="hand-drawn boxes (.csv or ChestX-Det10's .json) to score against"
    )
    parser.add_argument(
        "--box-size", metavar="WxH", help="size of the images that the boxes were drawn on, such as 1024x1024"
    )
    parser.add_argument("--patients", metavar="FILE.csv", help="columns image and patient: intervals resample patients")
    parser.add_argument(
        "--pictures", choices=("all", "boxed", "none"), default="all", help="boxed: those with a box (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    """Write pictures and tables; returns the exit code (1: an image could not be read)."""
    from carzero.data.decode import ImageError
    from carzero.data.files import list_images
    from carzero.evaluate.boxes import read_boxes

    layers, heads = _numbers("--layers", args.layers), _numbers("--heads", args.heads)
    if not 0 < args.threshold <= 1:
        raise UserError(f"--threshold is a share of the maximum above 0 and at most 1, got {args.threshold}.")
    if args.boxes is None and (args.box_size or args.patients or args.pictures == "boxed"):
        raise UserError("--box-size, --patients and --pictures boxed belong to --boxes FILE, which was not given.")
    prompts = _prompts(args)
    boxes = None if args.boxes is None else read_boxes(args.boxes, size=_size(args.box_size))
    patients = None if args.patients is None else _patients(args.patients)
    images = list_images(args.images)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be made: {error.strerror}.") from None
    from carzero.models.checkpoint import load
    from carzero.zeroshot.explain import Explainer
    from carzero.zeroshot.words import attend_words

    model = load(args.weights, tokenizer=args.tokenizer)
    texts = [texts[0] for texts in prompts.prompts]
    explainer = Explainer(model, texts, layers=layers, heads=heads)
    files = _file_names([image.name for image in images])
    tables = _Tables(prompts, boxes, args)
    failed = pictures = 0
    for image in images:
        try:
            explanations = explainer(image.path)
        except ImageError as error:
            print(f"carzero explain: {error}", file=sys.stderr)
            failed += 1
            continue
        for name, explanation in zip(prompts.classes, explanations):
            known = tables.add(image.name, name, explanation)
            if args.pictures == "all" or (args.pictures == "boxed" and known):
                found = [region.box for region in explanation.regions(args.threshold, smooth=not args.patches)]
                path = out / f"{files[image.name]}.{_file_name(name)}.png"
                explanation.save(path, known, found=found, smooth=not args.patches)
                pictures += 1
        if args.words:
            tables.add_words(image.name, attend_words(model, image.path, texts, layers=layers))
    tables.write(out)
    done = len(images) - failed
    print(f"{out}: {pictures} pictures of {done} images x {len(prompts)} classes. Not a medical device.")
    if boxes is not None:
        tables.score(out, boxes, patients)
    return 1 if failed else 0


class _Tables:
    """Rows of the CSV files beside the pictures."""

    def __init__(self, prompts: PromptSet, boxes: BoxSet | None, args: argparse.Namespace) -> None:
        self.prompts, self.boxes = prompts, boxes
        self.threshold, self.smooth = args.threshold, not args.patches
        self.regions: list[tuple] = []
        self.words: list[tuple] = []
        self.scored: list[tuple[str, str, MapScore]] = []
        self.outside = 0

    def add(self, image: str, name: str, explanation: Explanation) -> tuple:
        """Rows of one map; returns the boxes that are known of it."""
        from carzero.evaluate.grounding import box_mask, score_map

        for number, region in enumerate(explanation.regions(self.threshold, smooth=self.smooth), 1):
            box = [round(float(v), 1) for v in region.box]
            self.regions.append((image, name, explanation.logit, number, *box, region.peak, region.share))
        if self.boxes is None:
            return ()
        height, width = explanation.image.shape
        known = self.boxes.of(image, name, width, height)
        if known and not box_mask(known, height, width).any():
            self.outside += 1
        elif known:
            score = score_map(explanation.on_image(smooth=self.smooth), known, peak=explanation.peak)
            self.scored.append((image, name, score))
        return known

    def add_words(self, image: str, attended: Iterable) -> None:
        for name, one in zip(self.prompts.classes, attended):
            for word, weight, relative in zip(one.words, one.weights.tolist(), one.relative.tolist()):
                self.words.append((image, name, word, weight, relative, one.padding))

    def write(self, out: Path) -> None:
        import pandas as pd

        columns = ["image", "class", "logit", "region", "x0", "y0", "x1", "y1", "peak", "share"]
        _write(pd.DataFrame(self.regions, columns=columns), out / "regions.csv")
        if self.words:
            columns = ["image", "class", "word", "weight", "times mean", "weight of padding"]
            _write(pd.DataFrame(self.words, columns=columns), out / "words.csv")

    def score(self, out: Path, boxes: BoxSet, patients: dict[str, str] | None) -> None:
        import pandas as pd

        from carzero.evaluate.boxes import finding_key, image_key
        from carzero.evaluate.grounding import THRESHOLDS, grounding_table

        unknown = sorted(set(boxes.findings) - {finding_key(name) for name in self.prompts.classes})
        if unknown:
            print(f"carzero explain: boxes without a class of their name: {', '.join(unknown)}.", file=sys.stderr)
        if self.outside:
            print(
                f"carzero explain: {self.outside} maps have boxes outside their image; see --box-size.", file=sys.stderr
            )
        if not self.scored:
            raise UserError(
                "No image has a box of one of these classes: images are joined by file name without ending, findings "
                f"by name; the boxes are of {', '.join(boxes.findings)}."
            )
        if patients is not None:
            lacking = sorted({image for image, _, _ in self.scored if image_key(image) not in patients})
            if lacking:
                raise UserError(f"--patients has no row for {len(lacking)} images with boxes, the first: {lacking[0]}.")
        groups = [image_key(image) if patients is None else patients[image_key(image)] for image, _, _ in self.scored]
        rows = [(image, name, s.hit, s.chance, s.inside, *s.iou, *s.dice) for image, name, s in self.scored]
        names = [f"{kind} {t:g}" for kind in ("iou", "dice") for t in THRESHOLDS]
        _write(pd.DataFrame(rows, columns=["image", "finding", "hit", "chance", "inside", *names]), out / "maps.csv")
        table = grounding_table([name for _, name, _ in self.scored], [s for _, _, s in self.scored], groups)
        unit = "images" if patients is None else "patients"
        _write(table.rename(columns={"patients": unit}), out / "grounding.csv")
        print(f"Maps against boxes, 95 % intervals by {unit}:")
        for row in table.to_dict("records"):
            print(
                f"  {row['finding']}: n={row['n']}, pointing {row['pointing']:.3f} ({row['pointing low']:.3f} to "
                f"{row['pointing high']:.3f}), chance {row['chance']:.3f}, IoU at half the peak {row['iou 0.5']:.3f} "
                f"({row['iou 0.5 low']:.3f} to {row['iou 0.5 high']:.3f})"
            )


def _write(table: pd.DataFrame, path: Path) -> None:
    from carzero.zeroshot.command import write_table

    write_table(table, path)


def _prompts(args: argparse.Namespace) -> PromptSet:
    from carzero.prompts.sets import PromptSet, load_prompts

    if args.prompts is not None:
        return load_prompts(args.prompts)
    return PromptSet.from_findings([name for name in args.classes.split(",") if name.strip()])


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes whole numbers separated by commas, such as 0,1; got {text!r}.") from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--box-size takes width x height in pixels, such as 1024x1024; got {text!r}.")
    return int(match[1]), int(match[2])


def _patients(path: str) -> dict[str, str]:
    import pandas as pd

    from carzero.evaluate.boxes import image_key

    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise UserError(f"--patients {path} cannot be read: {error}") from None
    if not {"image", "patient"} <= set(table.columns):
        raise UserError(f"--patients {path} needs the columns image and patient, got {', '.join(table.columns)}.")
    return {image_key(image): patient for image, patient in zip(table["image"], table["patient"])}


def _file_names(names: list[str]) -> dict[str, str]:
    """Names of pictures without folders; two that would be one get a number."""
    taken: dict[str, str] = {}
    for name in names:
        wanted, number = _file_name(name), 1
        while wanted in taken.values():
            number += 1
            wanted = f"{_file_name(name)}_{number}"
        taken[name] = wanted
    return taken


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
