"""Trains the same small model with each similarity and several seeds, and writes the tables of docs/similarities.md.

Usage::

    python benchmarks/similarity_study.py              # what docs/records/similarities_drawn.json lacks
    python benchmarks/similarity_study.py --real DIR   # on real radiographs: DIR as for benchmarks/nih_cxr14.py
    python benchmarks/similarity_study.py --table      # the tables alone

A seed decides about the initial weights (those of the encoders are the same for all similarities), the order of the
batches, their crops and, of real radiographs, which patients are held out; so differences are taken within a seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np
import pandas as pd
import torch
from nih_cxr14 import phrase, split_by_patient, write_manifest
from scipy import stats

from carzero.demo import figures, phantoms
from carzero.demo.recipe import Recipe
from carzero.demo.run import versions
from carzero.evaluate import auroc_interval
from carzero.models.carzero import CARZero
from carzero.models.config import SimilarityName
from carzero.models.tokenizer import word_tokenizer
from carzero.prompts.sets import PromptSet
from carzero.train.loop import train
from carzero.zeroshot.classify import ZeroShotClassifier

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "similarities.md"
SIMILARITIES: tuple[str, ...] = get_args(SimilarityName)
RECIPE = Recipe(
    "similarities", train_images=1200, test_images=300, steps=240, cosine_steps=240, shuffled_steps=0, batch_size=24,
    image_size=64,
)  # fmt: skip
#: of a finding that real radiographs are asked for
MIN_POSITIVES = 60


class Data(NamedTuple):
    """What one training sees, and what its model is asked.

    Args:
        manifest: of the training images.
        texts: every text that the tokenizer must know.
        evaluate: the model's macro AUROC on held-out images.
    """

    manifest: Path
    texts: list[str]
    evaluate: Callable[[CARZero], float]


def drawn(folder: Path) -> Callable[[int], Data]:
    """The same drawn radiographs for every seed."""
    plan = phantoms.plan(RECIPE.train_images, RECIPE.test_images, seed=0, size=RECIPE.drawn_size)
    shown, held_out = (phantoms.draw_all(part) for part in plan)
    manifest = phantoms.write_pairs(folder, shown, "train")
    prompts = phantoms.finding_prompts()
    texts = [*(text for p in shown for text in phantoms.statements(p)), *prompts.values()]
    return lambda seed: Data(manifest, texts, lambda model: figures.score(model, held_out, prompts).macro(1).value)


def real(folder: Path, data: Path) -> Callable[[int], Data]:
    """Radiographs with text-mined labels as sentences, 30 % of the patients held out."""
    table = pd.read_csv(data / "labels.csv")
    findings = list(table.columns[list(table.columns).index("no_finding") + 1 :])
    asked = tuple(name for name in findings if table[name].sum() >= MIN_POSITIVES)

    def of_seed(seed: int) -> Data:
        held_out = split_by_patient(table, seed)
        manifest = folder / f"real-{seed}.csv"
        write_manifest(table[~held_out], findings, data, manifest)
        prompts = tuple((f"There is {phrase(name)}",) for name in asked)
        texts = [*pd.read_csv(manifest)["text"], *(p for (p,) in prompts)]
        images = [cv2.imread(str(data / f), cv2.IMREAD_GRAYSCALE) for f in table["file"][held_out]]
        labels = table[held_out]

        def evaluate(model: CARZero) -> float:
            classifier = ZeroShotClassifier(
                model, PromptSet(asked, prompts), batch_size=64, workers=0, dtype=torch.float32
            )
            scores = classifier.predict(images)
            return float(np.mean([auroc_interval(labels[f], scores[f], resamples=1).value for f in asked]))

        return Data(manifest, texts, evaluate)

    return of_seed


def record_of(kind: str) -> Path:
    """The record of the runs on ``drawn`` or ``real`` radiographs."""
    return ROOT / "docs" / "records" / f"similarities_{kind}.json"


def missing(record: dict[str, Any], seeds: int) -> list[tuple[int, str]]:
    """Runs that the record lacks, seed by seed, so that a stopped study has whole pairs."""
    done = {(run["seed"], run["similarity"]) for run in record["runs"]}
    return [(s, name) for s in range(seeds) for name in SIMILARITIES if (s, name) not in done]


def study(kind: str, seeds: int, source: Path | None) -> None:
    """Run what is missing; the record is written after each run."""
    recipe, path = dataclasses.asdict(RECIPE), record_of(kind)
    record = json.loads(path.read_text()) if path.exists() else {"recipe": recipe, "runs": []}
    if record["recipe"] != recipe:
        raise SystemExit(f"{path} was made with another recipe; remove it to start again.")
    record["versions"] = versions()
    left = missing(record, seeds)
    if not left:
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare = drawn(Path(folder)) if source is None else real(Path(folder), source)
        for seed, name in left:
            data = prepare(seed)
            tokenizer = word_tokenizer(data.texts)
            torch.manual_seed(seed)
            config = dataclasses.replace(RECIPE.model(len(tokenizer)), similarity=name)
            model = CARZero(config, tokenizer)
            settings = RECIPE.training(data.manifest, Path(folder) / f"{name}-{seed}", seed=seed, steps=RECIPE.steps)
            if kind == "real":
                # one text an image, of which the labels say all
                settings = dataclasses.replace(settings, texts_per_image=1)
            start = time.process_time()
            result = train(settings, model=model, quiet=True)
            seconds = time.process_time() - start
            if result.signal is not None:
                raise SystemExit(f"stopped by signal {result.signal}; what is finished is in {path}.")
            record["runs"].append(
                {
                    "seed": seed, "similarity": name, "auroc": round(data.evaluate(result.model), 4),
                    "last_loss": round(float(np.mean(result.losses[-10:])), 4), "cpu_seconds": round(seconds, 1),
                    "parameters": sum(p.numel() for p in model.decoder.parameters()),
                }
            )  # fmt: skip
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(record["runs"][-1], flush=True)


def table(record: dict[str, Any]) -> str:
    """Markdown: a row for each similarity, with differences from the decoder within each seed."""
    runs = {name: {r["seed"]: r for r in record["runs"] if r["similarity"] == name} for name in SIMILARITIES}
    seeds = sorted(set.intersection(*(set(found) for found in runs.values())))
    if len(seeds) < 2:
        raise SystemExit(f"An interval takes at least two seeds of all similarities; there are {len(seeds)}.")
    lines = [
        f"| similarity | macro AUROC, mean of {len(seeds)} seeds (lowest, highest) | difference from the decoder, 95 % "
        "interval | parameters beside the encoders | CPU time of a training, decoder = 1 |",
        "|---|---|---|---|---|",
    ]
    base = np.array([runs["decoder"][s]["auroc"] for s in seeds])
    clock = np.array([runs["decoder"][s]["cpu_seconds"] for s in seeds])
    for name in SIMILARITIES:
        values = np.array([runs[name][s]["auroc"] for s in seeds])
        ratio = np.median(np.array([runs[name][s]["cpu_seconds"] for s in seeds]) / clock)
        gap = "-" if name == "decoder" else interval(values - base)
        parameters = runs[name][seeds[0]]["parameters"]
        lines.append(
            f"| {name} | {values.mean():.3f} ({values.min():.3f}, {values.max():.3f}) | {gap} | {parameters:,} | "
            f"{ratio:.2f} |"
        )
    return "\n".join(lines)


def interval(differences: np.ndarray) -> str:
    """Mean and Student's 95 % interval of paired differences."""
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    mean = differences.mean()
    return f"{mean:+.3f} ({mean - half:+.3f}, {mean + half:+.3f})"


def render(kind: str) -> None:
    """Put the table between the markers of the page."""
    begin, end = (f"<!-- generated by similarity_study.py, {kind}: {edge} -->" for edge in ("begin", "end"))
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    made = table(json.loads(record_of(kind).read_text()))
    PAGE.write_text(f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each similarity (default: %(default)s)")
    parser.add_argument("--real", type=Path, help="folder of real radiographs, in the place of the drawn ones")
    parser.add_argument("--table", action="store_true", help="only write both tables from the record")
    arguments = parser.parse_args()
    if arguments.table:
        for kind in ("drawn", "real"):
            render(kind)
        return
    kind = "drawn" if arguments.real is None else "real"
    study(kind, arguments.seeds, arguments.real)
    render(kind)


if __name__ == "__main__":
    main()
