"""Train on real radiographs from nothing and compare with what pixels alone can do.

Usage::

    python benchmarks/nih_cxr14.py --data DIR --out DIR [--seeds 0,1,2] -- OPTIONS OF carzero train

DIR is a folder with `labels.csv` (columns file, patient_id, finding_labels, no_finding and one 0/1 column per finding)
and the images it names: here 781 frontal radiographs of 546 patients of NIH ChestX-ray14 (Wang et al., CVPR 2017).

Per seed: patients are split 70/30; sentences are made from the labels ("There is <finding>." / "There is no acute
abnormality."); a small CARZero is trained with `carzero train`; held-out patients are scored with
`carzero classify`; the area under the ROC curve is reported with a 95 % interval that resamples patients, beside a
logistic regression on the pixels of the same split. The labels are text-mined, and half of the images were chosen for
Pneumonia and half for No Finding, so exposure cues exist: the pixel floor is the figure to beat, not 0.5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from carzero.evaluate import auroc_interval, macro_auroc_interval

PHRASES = {"Pleural_Thickening": "pleural thickening"}
NORMAL = "There is no acute abnormality."


def phrase(finding: str) -> str:
    """The finding as it stands in a sentence."""
    return PHRASES.get(finding, finding.lower())


def split_by_patient(table: pd.DataFrame, seed: int, held_out: float = 0.3) -> np.ndarray:
    """True where a row belongs to a held-out patient; no patient is on both sides."""
    patients = np.random.default_rng(seed).permutation(table["patient_id"].unique())
    return table["patient_id"].isin(patients[: round(held_out * len(patients))]).to_numpy()


def write_manifest(table: pd.DataFrame, findings: list[str], data: Path, path: Path) -> None:
    """Manifest for `carzero train`: image, text (one sentence per finding), patient."""
    texts = [
        " ".join(f"There is {phrase(f)}." for f in findings if row[f] == 1) or NORMAL for _, row in table.iterrows()
    ]
    manifest = pd.DataFrame(
        {"image": [str((data / f).resolve()) for f in table["file"]], "text": texts, "patient": table["patient_id"]}
    )
    manifest.to_csv(path, index=False)


def pixel_floor(table: pd.DataFrame, held_out: np.ndarray, finding: str, data: Path, size: int = 32) -> np.ndarray:
    """Scores of the held-out rows by logistic regression on `size` x `size` grey values."""
    images = [cv2.imread(str(data / f), cv2.IMREAD_GRAYSCALE) for f in table["file"]]
    pixels = np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA).ravel() for i in images])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=2000))
    model.fit(pixels[~held_out], table[finding].to_numpy()[~held_out])
    return model.decision_function(pixels[held_out])


def run_seed(
    table: pd.DataFrame, findings: list[str], data: Path, out: Path, seed: int, train_options: list[str]
) -> dict:
    """Split, train, classify and score one seed; returns its figures."""
    out.mkdir(parents=True, exist_ok=True)
    held_out = split_by_patient(table, seed)
    train, test = table[~held_out], table[held_out]
    write_manifest(train, findings, data, out / "train.csv")
    (out / "prompts.json").write_text(json.dumps({f: f"There is {phrase(f)}" for f in findings}, indent=1))
    files = [str(data / f) for f in test["file"]]

    start = time.perf_counter()
    command = ["train", "--manifest", str(out / "train.csv"), "--out", str(out / "run"), "--seed", str(seed)]
    _carzero(*command, *train_options)
    seconds = time.perf_counter() - start
    _carzero(
        "classify", *files, "--prompts", str(out / "prompts.json"), "--weights", str(out / "run" / "model"),
        "--out", str(out / "scores.csv"),
    )  # fmt: skip

    scores = pd.read_csv(out / "scores.csv")
    scores["name"] = [Path(i).name for i in scores["image"]]
    test = test.assign(name=[Path(f).name for f in test["file"]]).merge(scores, on="name", suffixes=("", "_score"))
    if len(test) != len(files):
        raise RuntimeError(f"{len(files)} held-out images were given, {len(test)} were scored.")
    patients = test["patient_id"].to_numpy()
    rows, floors = {}, {}
    for finding in findings:
        labels = test[finding].to_numpy()
        if labels.sum() < 10:
            continue
        floor = pixel_floor(table, held_out, finding, data)
        floors[finding] = floor
        rows[finding] = {
            "positives": int(labels.sum()),
            "carzero": auroc_interval(labels, test[f"{finding}_score"], patients).__dict__,
            "pixels": auroc_interval(labels, floor, patients).__dict__,
        }
    # for `carzero evaluate`, which joins them to scores.csv by image name
    test[["name", "patient_id", "sex", "age", "view", *findings]].rename(
        columns={"name": "image", "patient_id": "patient"}
    ).to_csv(out / "labels.csv", index=False)
    pd.DataFrame({"image": test["name"], **floors}).to_csv(out / "pixels.csv", index=False)
    common = list(rows)
    macro = macro_auroc_interval(test[common], test[[f"{f}_score" for f in common]], patients)
    return {
        "seed": seed,
        "train_images": len(train),
        "test_images": len(test),
        "test_patients": int(test["patient_id"].nunique()),
        "train_seconds": round(seconds),
        "macro": macro.__dict__,
        "findings": rows,
    }


def _carzero(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "carzero", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("train_options", nargs="*", help="after --: options handed to `carzero train`")
    args = parser.parse_args()
    table = pd.read_csv(args.data / "labels.csv")
    start = list(table.columns).index("no_finding") + 1
    findings = list(table.columns[start:])
    results = []
    for seed in (int(s) for s in args.seeds.split(",")):
        results.append(run_seed(table, findings, args.data, args.out / f"seed{seed}", seed, args.train_options))
        (args.out / "results.json").write_text(json.dumps(results, indent=1))
        for finding, row in results[-1]["findings"].items():
            ours, floor = row["carzero"], row["pixels"]
            print(
                f"seed {seed}  {finding:20s} n={row['positives']:3d}  "
                f"carzero {ours['value']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]  "
                f"pixels {floor['value']:.3f} [{floor['low']:.3f}, {floor['high']:.3f}]"
            )


if __name__ == "__main__":
    main()
