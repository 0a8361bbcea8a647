"""A run on real radiographs that is killed and goes on: held-out AUROC beside a pixel floor, and retrieval of notes.

    python benchmarks/real_run.py --data DIR --out DIR [--steps 300] [--kill 0.5] [--seed 0]

DIR holds `nih_cxr14` (781 radiographs with text-mined labels, as sentences) and `clinical_notes` (radiographs with
notes by hand). 30 % of the patients of each are held out. `carzero train` is ended by SIGKILL after that share of the
steps and started again with `--resume auto`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nih_cxr14 import pixel_floor, split_by_patient, write_manifest

import carzero
from carzero.evaluate import auroc_interval

FINDING = "Pneumonia"


def notes(data: Path, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Frontal radiographs with a note, and which are held out by patient."""
    table = pd.read_csv(data / "metadata.csv")
    table = table[table["clinical_notes"].fillna("").str.strip() != ""].reset_index(drop=True)
    table["patient_id"] = table["patientid"].astype(str)
    return table, split_by_patient(table, seed)


def prepare(data: Path, out: Path, seed: int) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Write the manifest, the labelled held-out set and its prompts; returns labels, held-out rows, held-out notes."""
    nih = pd.read_csv(data / "nih_cxr14" / "labels.csv")
    findings = list(nih.columns[list(nih.columns).index("no_finding") + 1 :])
    held_out = split_by_patient(nih, seed)
    write_manifest(nih[~held_out], findings, data / "nih_cxr14", out / "nih.csv")
    noted, apart = notes(data / "clinical_notes", seed)
    mine = noted[~apart]
    more = pd.DataFrame(
        {
            "image": [str((data / "clinical_notes" / f).resolve()) for f in mine["file"]],
            "text": mine["clinical_notes"].str.split().str.join(" "),
            "patient": "notes-" + mine["patient_id"],
        }
    )
    pd.concat([pd.read_csv(out / "nih.csv", dtype=str), more]).to_csv(out / "train.csv", index=False)
    labelled = nih[held_out]
    pd.DataFrame(
        {"image": [str((data / "nih_cxr14" / f).resolve()) for f in labelled["file"]], FINDING: labelled[FINDING]}
    ).to_csv(out / "labels.csv", index=False)
    (out / "prompts.json").write_text(json.dumps({FINDING: f"There is {FINDING.lower()}"}))
    return nih, held_out, noted[apart]


def train(out: Path, steps: int, seed: int, until: int | None) -> int:
    """Run `carzero train`; SIGKILL after `until` recorded steps. Returns the exit status."""
    command = [
        sys.executable, "-m", "carzero", "train", "--manifest", str(out / "train.csv"), "--out", str(out / "run"),
        "--model", "small", "--steps", str(steps), "--batch-size", "32", "--learning-rate", "1e-3", "--weight-decay",
        "0.05", "--betas", "0.9,0.98", "--clip", "1", "--positives", "report", "--augment", "affine", "--cache", "true",
        "--checkpoint-every", "25", "--validation.manifest", str(out / "labels.csv"), "--validation.prompts",
        str(out / "prompts.json"), "--validation.every", "50", "--seed", str(seed), "--resume", "auto",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    table = out / "run" / "metrics.csv"
    while until is not None and process.poll() is None:
        if table.exists() and len(table.read_text().splitlines()) > until:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.2)
    return process.wait()


def retrieval(model: carzero.CARZero, held: pd.DataFrame, data: Path) -> dict[str, float]:
    """Of each held-out image its own note among all held-out notes: share within the first five, median rank."""
    processor = carzero.ImageProcessor(size=model.config.image.image_size)
    pixels = torch.stack([processor(data / "clinical_notes" / f) for f in held["file"]])
    scores = model.similarity(pixels, held["clinical_notes"].tolist()).numpy()
    texts = held["clinical_notes"].to_numpy()
    # the same note twice is the same answer
    best = [max(scores[i, texts == texts[i]]) for i in range(len(held))]
    rank = np.array([1 + (scores[i] > best[i]).sum() for i in range(len(held))])
    return {"pairs": len(held), "recall at 5": float((rank <= 5).mean()), "median rank": float(np.median(rank))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kill", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    nih, held_out, held = prepare(args.data, args.out, args.seed)
    killed = train(args.out, args.steps, args.seed, round(args.kill * args.steps))
    resumed = train(args.out, args.steps, args.seed, None)
    steps = pd.read_csv(args.out / "run" / "metrics.csv")["step"].tolist()
    if killed != -signal.SIGKILL or resumed != 0 or steps != list(range(1, args.steps + 1)):
        raise SystemExit(f"the run was to be killed and to go on: exit {killed} and {resumed}, {len(steps)} steps")
    model = carzero.load(args.out / "run" / "model")
    processor = carzero.ImageProcessor(size=model.config.image.image_size)
    test = nih[held_out]
    pixels = torch.stack([processor(args.data / "nih_cxr14" / f) for f in test["file"]])
    scores = model.similarity(pixels, [f"There is {FINDING.lower()}"])[:, 0].numpy()
    floor = pixel_floor(nih, held_out, FINDING, args.data / "nih_cxr14")
    labels, patients = test[FINDING].to_numpy(), test["patient_id"].to_numpy()
    found = retrieval(model, held, args.data)
    print("| figure | value | beside it |\n|---|---|---|")
    print(
        f"| AUROC of {FINDING}, {len(test)} held-out images | {auroc_interval(labels, scores, patients)} | pixels "
        f"{auroc_interval(labels, floor, patients)} |"
    )
    print(
        f"| own note within five of {found['pairs']:.0f} | {found['recall at 5']:.2f} | chance "
        f"{5 / found['pairs']:.2f} |"
    )
    print(f"| median rank of the own note | {found['median rank']:.0f} | chance {found['pairs'] / 2:.0f} |")


if __name__ == "__main__":
    main()
