"""Compare drawn radiographs with real ones by six statistics, and write the table of `docs/phantom.md`.

Usage::

    python benchmarks/phantom_realism.py [--data FOLDER] [--count 600] [--seed 0] [--docs docs/phantom.md]
    python benchmarks/phantom_realism.py --sheet docs/images/phantom_contact_sheet.jpg

FOLDER holds `nih_cxr14/images`: 781 frontal radiographs of 256 x 256 pixels from NIH ChestX-ray14 (Wang et al., CVPR
2017). They are not part of this repository; without `--data` the folder is taken from CARZERO_SHARED_DATA, else from
`../shared/data` beside the repository.

Of each statistic, the table gives the real images' 5th, 50th and 95th percentile, the drawn images' own, and the share
of drawn images inside the real 5-95 % range. The exit status is 1 where a drawn median lies outside, or more than 20 %
of the drawn images do. Beside it stands the area under the ROC curve with which a logistic regression on an
image's mean and spread alone (5-fold) finds each finding: 0.75 or more would mean that brightness gives it away.

`--sheet` only writes the contact sheet, which needs no real image: 16 phantoms as they come, then each finding alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np

from carzero.data.phantom import FINDINGS, Finding, draw

STATISTICS = {
    "mean": "mean grey value",
    "std": "standard deviation",
    "p5": "5th percentile",
    "p95": "95th percentile",
    "edge": "edge energy (mean gradient magnitude, grey values a pixel)",
    "mirror": "left-right correlation (image with its mirror)",
}
SIDE = 256
INSIDE = 0.80
BEGIN, END = "<!-- realism: begin -->", "<!-- realism: end -->"


def statistics(image: np.ndarray) -> list[float]:
    """The six figures of one grey image, in the order of STATISTICS."""
    grey = image.astype(np.float64)
    down, across = np.gradient(grey)
    low, high = np.percentile(grey, [5, 95])
    mirror = np.corrcoef(grey.ravel(), grey[:, ::-1].ravel())[0, 1]
    return [grey.mean(), grey.std(), low, high, np.hypot(down, across).mean(), mirror]


def mean_and_spread_auroc(features: np.ndarray, labels: np.ndarray) -> float:
    """AUROC of 5-fold logistic regression on mean and standard deviation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression())
    return float(roc_auc_score(labels, cross_val_predict(model, features, labels, cv=5, method="decision_function")))


def compare(real: np.ndarray, drawn: np.ndarray) -> tuple[list[str], bool]:
    """Markdown rows, and whether every median and at least INSIDE of the drawn images lie in the real 5-95 % range."""
    rows, passed = [], True
    for column, text in enumerate(STATISTICS.values()):
        low, middle, high = np.percentile(real[:, column], [5, 50, 95])
        ours = np.percentile(drawn[:, column], [5, 50, 95])
        inside = float(np.mean((drawn[:, column] >= low) & (drawn[:, column] <= high)))
        passed &= inside >= INSIDE and low <= ours[1] <= high
        digits = 2 if high < 20 else 0
        cells = " | ".join(f"{v:.{digits}f}" for v in (low, middle, high, *ours))
        rows.append(f"| {text} | {cells} | {100 * inside:.0f} % |")
    return rows, passed


def contact_sheet(seed: int, side: int = 192) -> np.ndarray:
    """uint8 picture: two rows of phantoms as they come, one row with each finding alone, with captions."""

    def tile(image: np.ndarray, caption: str) -> np.ndarray:
        framed = cv2.copyMakeBorder(image, 0, 16, 1, 1, cv2.BORDER_CONSTANT, value=255)
        cv2.putText(framed, caption, (3, side + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.34, 0, 1, cv2.LINE_AA)
        return framed

    plain = [draw(i, seed=seed, size=side) for i in range(16)]
    names = [[f.name for f in p.findings] for p in plain]
    captions = [", ".join(n[:2]) + (f" +{len(n) - 2}" if len(n) > 2 else "") or "normal" for n in names]
    tiles = [tile(p.image, caption) for p, caption in zip(plain, captions)]
    for number, (name, kind) in enumerate(FINDINGS.items()):
        side_name = ("left", "right")[number % 2] if kind.sided else None
        wanted = Finding(name, side_name, kind.severities[len(kind.severities) // 2])
        words = [w for w in (wanted.severity, side_name, name) if w]
        tiles.append(tile(draw(100 + number, seed=seed, size=side, findings=(wanted,)).image, " ".join(words)))
    return np.vstack([np.hstack(tiles[i : i + 8]) for i in range(0, 24, 8)])


def find_images(data: Path | None) -> list[Path]:
    """The real images; a sentence and exit where they are not there."""
    repository = Path(__file__).resolve().parent.parent
    data = data or Path(os.environ.get("CARZERO_SHARED_DATA", repository.parent / "shared" / "data"))
    files = sorted((data / "nih_cxr14" / "images").glob("*.jpg"))
    if not files:
        sys.exit(
            f"phantom_realism: no real radiographs in {data / 'nih_cxr14' / 'images'}; they are not part of the "
            "repository. Give the folder that holds nih_cxr14 with --data or CARZERO_SHARED_DATA."
        )
    return files


def write_between_markers(path: Path, table: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the markers of the page."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="page whose table is to be replaced")
    parser.add_argument("--sheet", type=Path, help="write the contact sheet to this JPEG and stop")
    args = parser.parse_args()

    if args.sheet:
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        return 0 if cv2.imwrite(str(args.sheet), contact_sheet(args.seed), [cv2.IMWRITE_JPEG_QUALITY, 78]) else 1
    files = find_images(args.data)
    real = np.array([statistics(np.asarray(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE))) for f in files])
    phantoms = [draw(i, seed=args.seed, size=SIDE) for i in range(args.count)]
    drawn = np.array([statistics(p.image) for p in phantoms])
    rows, passed = compare(real, drawn)
    aurocs = {
        name: mean_and_spread_auroc(drawn[:, :2], np.array([p.labels[name] for p in phantoms])) for name in FINDINGS
    }
    table = "\n".join([
        f"{len(real)} real, {len(drawn)} drawn images of {SIDE} x {SIDE} pixels (seed {args.seed}).",
        "",
        "| statistic | real 5 % | real median | real 95 % | drawn 5 % | drawn median | drawn 95 % | drawn inside |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "| finding | share of images | AUROC of mean and spread |",
        "|---|---|---|",
        *(
            f"| {name} | {100 * np.mean([p.labels[name] for p in phantoms]):.0f} % | {auroc:.2f} |"
            for name, auroc in aurocs.items()
        ),
    ])  # fmt: skip
    print(table)
    if args.docs:
        write_between_markers(args.docs, table)
    return 0 if passed and max(aurocs.values()) < 0.75 else 1


if __name__ == "__main__":
    sys.exit(main())
