"""The demo from first drawing to finished page, in the order things happen."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from carzero import __version__
from carzero.bench.cases import Case, contenders
from carzero.bench.measure import gemm_rate, take_turns
from carzero.data.phantom import Phantom
from carzero.demo import figures, phantoms
from carzero.demo.baselines import pixel_scores
from carzero.demo.page import write_page
from carzero.demo.page_context import drawn_context
from carzero.demo.recipe import Recipe
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import SimilarityName
from carzero.models.tokenizer import word_tokenizer
from carzero.ops import backends
from carzero.ops.spec import DecoderSpec
from carzero.train.checkpoint import replace_folder
from carzero.train.loop import train

#: Held-out drawings that are left in DIR/images for `carzero classify`.
KEPT_IMAGES = 24


@dataclass
class Clock:
    """Seconds of each stage, and one printed line when it is done."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        print(f"{name} ...", flush=True)
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def run_drawn(out: Path, recipe: Recipe, *, seed: int = 0) -> Path:
    """Draw, train, classify, measure and write ``index.html``, ``metrics.json``, ``model/`` and ``images/`` into `out`.

    Returns:
        the page.
    """
    clock = Clock()
    work = out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    plan = phantoms.plan(recipe.train_images, recipe.test_images, seed=seed, size=recipe.drawn_size)
    with clock.stage(f"draw {recipe.train_images} + {recipe.test_images} radiographs"):
        drawn, held_out = (phantoms.draw_all(part) for part in plan)
        manifest = phantoms.write_pairs(work, drawn, "train")
        shuffled = _shuffled(manifest, seed)

    with clock.stage("train"):
        result = train(
            recipe.training(manifest, work / "main", seed=seed, steps=recipe.steps), model=_new(recipe, manifest, seed)
        )
    model = result.model
    if result.signal is not None:
        raise UserError(f"stopped by signal {result.signal} after {result.step} of {recipe.steps} steps.")
    with clock.stage("train the same encoders with a cosine head"):
        config = recipe.training(manifest, work / "cosine", seed=seed, steps=recipe.cosine_steps)
        cosine = train(config, model=_new(recipe, manifest, seed, "cosine"), quiet=True).model
    with clock.stage("train on shuffled texts"):
        config = recipe.training(shuffled, work / "shuffled", seed=seed, steps=recipe.shuffled_steps)
        chance = train(config, model=_new(recipe, shuffled, seed), quiet=True).model

    with clock.stage("classify and measure"):
        measured = measure(model, cosine, chance, drawn, held_out, recipe)
    with clock.stage("time the op"):
        speed = time_op(rounds=recipe.rounds)

    metrics = {
        "macro_auroc": measured["rows"]["held_out"]["value"],
        **measured,
        "seed": seed,
        "recipe": recipe.name,
        "train_images": recipe.train_images,
        "test_images": recipe.test_images,
        "steps": {"carzero": recipe.steps, "cosine": recipe.cosine_steps, "shuffled": recipe.shuffled_steps},
        "batch_size": recipe.batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": [round(value, 5) for value in result.losses],
        "speed": speed,
        "seconds": {**clock.seconds, "total": round(sum(clock.seconds.values()), 1)},
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": versions(),
    }
    replace_folder(work / "main" / "model", out / "model")
    _keep_images(out, held_out[:KEPT_IMAGES])
    page = out / "index.html"
    write_page(page, drawn_context(metrics, model, held_out, recipe))
    partial = out / ".metrics.partial"
    partial.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out / "metrics.json")
    shutil.rmtree(work)
    return page


def measure(
    model: CARZero, cosine: CARZero, chance: CARZero, drawn: list[Phantom], held_out: list[Phantom], recipe: Recipe
) -> dict[str, Any]:
    """All rows and the figures per finding, ready for JSON."""
    draws = recipe.resamples
    found = figures.score(model, held_out, phantoms.finding_prompts())
    denied = figures.score(model, held_out, phantoms.negated_prompts())
    sided = figures.score(model, held_out, phantoms.pair_prompts())
    unseen = sided.only(list(phantoms.UNSEEN_PAIRS))
    reworded = figures.score(model, held_out, phantoms.reworded_prompts())
    other = figures.score(cosine, held_out, phantoms.finding_prompts())
    control = figures.score(chance, held_out, phantoms.finding_prompts())
    floor = pixel_scores(
        [p.image for p in drawn], phantoms.label_matrix(drawn, found.keys), [p.image for p in held_out]
    )
    pixels = figures.Scored(found.keys, found.prompts, found.labels, floor.astype(np.float32))
    absence, difference = figures.negated_twins(found, denied, draws)
    per = {
        name: figures.by_finding(s, draws) for name, s in (("carzero", found), ("pixels", pixels), ("cosine", other))
    }
    rows = {
        "held_out": found.macro(draws),
        "unseen_pairs": unseen.macro(draws),
        "unseen_wording": reworded.macro(draws),
        "pixels": pixels.macro(draws),
        "cosine_head": other.macro(draws),
        "shuffled_texts": control.macro(draws),
        "negated_twins": absence,
    }
    return {
        "rows": {name: vars(interval) for name, interval in rows.items()},
        "negated_difference": difference,
        "side_against_side": {
            "all": figures.side_against_side(sided),
            **{
                phantoms.label_column(pair): figures.side_against_side(sided.only([pair, _mirrored(pair)]))
                for pair in phantoms.UNSEEN_PAIRS
            },
        },
        "unseen_pair": {phantoms.label_column(k): vars(v) for k, v in figures.by_finding(unseen, draws).items()},
        "unseen_wordings": reworded.prompts,
        "findings": {
            key: {
                "positives": int(found.labels[:, c].sum()),
                **{name: vars(values[key]) for name, values in per.items()},
            }
            for c, key in enumerate(found.keys)
        },
        "pointing": figures.pointing(model, held_out, phantoms.finding_prompts(), most=recipe.pointed),
    }


def time_op(
    *, memories: int = 4, queries: int = 128, rounds: int = 3, spec: DecoderSpec | None = None
) -> dict[str, Any]:
    """The chosen backend, plain torch, the published module and the reference, at CARZero's published sizes.

    Measured as `carzero bench` does, float32: forward with packed weights, forward and backward with dropout 0.1.
    """
    spec = spec or DecoderSpec()
    chosen, reason = backends.choose(
        "auto", device=torch.device("cpu"), dtype=torch.float32, width=spec.width, heads=spec.heads
    )
    names = list(dict.fromkeys((chosen, "torch", "reference")))
    seconds: dict[str, dict[str, float]] = {name: {} for name in (*names, "published")}
    modes: tuple[Literal["forward", "forward+backward"], ...] = ("forward", "forward+backward")
    for mode in modes:
        case = Case(mode=mode, memories=memories, queries=queries, spec=spec)
        timings, _ = take_turns(contenders(case, names), gemm_rate(case.dtype), rounds)
        for name, timing in timings.items():
            seconds[name][mode] = timing.median
    return {"chosen": chosen, "reason": reason, "shape": case.shape, "seconds": seconds}


def versions() -> dict[str, str]:
    """What ran."""
    return {
        "carzero": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def _new(recipe: Recipe, manifest: Path, seed: int, similarity: SimilarityName = "decoder") -> CARZero:
    texts = pd.read_csv(manifest)["text"]
    tokenizer = word_tokenizer([*texts, *phantoms.finding_prompts().values()])
    torch.manual_seed(seed)
    return CARZero(dataclasses.replace(recipe.model(len(tokenizer)), similarity=similarity), tokenizer)


def _shuffled(manifest: Path, seed: int) -> Path:
    """A manifest with the same images and the same texts, put together at random."""
    table = pd.read_csv(manifest)
    table["text"] = np.random.default_rng(seed).permutation(table["text"].to_numpy())
    path = manifest.with_name("shuffled.csv")
    table.to_csv(path, index=False)
    return path


def _mirrored(pair: tuple[str, str]) -> tuple[str, str]:
    return pair[0], "left" if pair[1] == "right" else "right"


def _keep_images(out: Path, some: list[Phantom]) -> None:
    """Leave drawn test images with their texts, labels and a prompts file that `carzero classify` takes."""
    partial = out / ".images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    phantoms.write_pairs(partial, some, "test")
    # the tables go beside the images and not among them: a folder given to `carzero classify` holds images alone
    (partial / "prompts.json").write_text(json.dumps(phantoms.finding_prompts(), indent=1) + "\n", encoding="utf-8")
    replace_folder(partial / "images", out / "images")
    table = pd.read_csv(partial / "test.csv")
    table.to_csv(out / "test.csv", index=False)
    pd.read_csv(partial / "test_labels.csv").to_csv(out / "test_labels.csv", index=False)
    os.replace(partial / "prompts.json", out / "prompts.json")
    shutil.rmtree(partial)
