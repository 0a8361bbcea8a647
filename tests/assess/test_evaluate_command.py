"""`carzero evaluate` and `carzero verify`: the JSON object, the files, the page, and every wrong combination."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from carzero.cli import main


@pytest.fixture
def tables(tmp_path):
    """Predictions and labels of 80 images of 30 patients, rows in different orders."""
    rng = np.random.default_rng(11)
    names = [f"{i:03d}.png" for i in range(80)]
    labels = pd.DataFrame(rng.random((80, 3)) < (0.5, 0.3, 0.05), columns=["Mass", "Edema", "Hernia"]).astype(int)
    scores = pd.DataFrame(rng.normal(size=(80, 3)) + labels, columns=labels.columns)
    other = scores + rng.normal(size=(80, 3))
    labels.insert(0, "image", names)
    labels["patient"], labels["sex"] = rng.integers(0, 30, 80), rng.choice(["F", "M"], 80)
    for frame, name in ((scores, "scores"), (other, "other")):
        frame.insert(0, "image", [f"/data/{n}" for n in names])
        frame.sample(frac=1, random_state=1).to_csv(tmp_path / f"{name}.csv", index=False)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path, labels, scores


def evaluate(folder, *arguments):
    return main(["evaluate", "--predictions", str(folder / "scores.csv"), "--labels", str(folder / "labels.csv"),
                 *map(str, arguments)])  # fmt: skip


def test_one_json_object_with_the_promised_keys(tables, capsys):
    folder, labels, scores = tables
    assert evaluate(folder, "--out", folder / "out", "--json", "--resamples", 50) == 0
    printed = capsys.readouterr().out
    got = json.loads(printed)
    assert printed.count("\n") == 1
    y, s = labels[["Mass", "Edema", "Hernia"]].to_numpy(), scores[["Mass", "Edema", "Hernia"]].to_numpy()
    assert got["macro_auroc"] == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-12)
    assert got["macro_average_precision"] == pytest.approx(metrics.average_precision_score(y, s), abs=1e-12)

    def area(a, b):
        precision, recall, _ = metrics.precision_recall_curve(a, b)
        return metrics.auc(recall, precision)

    assert got["macro_auprc_trapezoid"] == pytest.approx(np.mean([area(y[:, c], s[:, c]) for c in range(3)]), abs=1e-12)
    assert got["micro_auprc_trapezoid"] == pytest.approx(area(y.ravel(), s.ravel()), abs=1e-12)
    low, high = got["macro_auroc_ci"]
    assert low < got["macro_auroc"] < high
    assert (got["n_images"], got["n_patients"]) == (80, labels["patient"].nunique())
    assert got["intervals"]["drawn"] == "patient"
    assert got["per_class"]["Edema"]["auroc"] == pytest.approx(metrics.roc_auc_score(y[:, 1], s[:, 1]), abs=1e-12)
    assert got["per_class"]["Hernia"]["positives"] == y[:, 2].sum()
    assert set(got["groups"]) >= {"head", "medium", "tail"}
    assert got["groups"]["tail"]["classes"] == ["Hernia"]
    assert json.loads((folder / "out" / "metrics.json").read_text()) == got


def test_all_files_hold_the_same_figures(tables, capsys):
    folder, *_ = tables
    arguments = ("--by", "sex", "--compare", folder / "other.csv", "--operating-point", "sensitivity=0.8")
    assert evaluate(folder, "--out", folder / "out", "--resamples", 50, *arguments, "--prevalence", "Mass=0.1") == 0
    out = folder / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html",
        "metrics.json",
        "per_class.csv",
        "report.md",
        "report.tex",
    ]
    got = json.loads((out / "metrics.json").read_text())
    shown = f"{got['macro_auroc']:.3f} [{got['macro_auroc_ci'][0]:.3f}, {got['macro_auroc_ci'][1]:.3f}]"
    said = capsys.readouterr().out
    for text in (
        said,
        (out / "report.md").read_text(),
        (out / "report.tex").read_text(),
        (out / "index.html").read_text(),
    ):
        assert shown in text
        assert "chosen on these very images" in text or "Operating" not in text
    table = pd.read_csv(out / "per_class.csv").set_index("class")
    for name, figures in got["per_class"].items():
        assert table.loc[name, "auroc"] == pytest.approx(figures["auroc"], abs=1e-12)
        assert table.loc[name, "auroc_low"] == pytest.approx(figures["auroc_ci"][0], abs=1e-12)
        point = figures["operating"]
        assert point["sensitivity"] >= 0.8
        assert table.loc[name, "threshold"] == pytest.approx(point["threshold"], abs=1e-12)
    assert "ppv_at_prevalence" in got["per_class"]["Mass"]["operating"]
    assert "ppv_at_prevalence" not in got["per_class"]["Edema"]["operating"]
    assert got["comparison"]["macro"]["difference"] > 0
    assert set(got["subgroups"]["sex"]["groups"]) == {"F", "M"}
    # LaTeX: as many columns in every row of a table as in its head
    tex = (out / "report.tex").read_text()
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") > 3
    assert not re.search(r"(?<!\\)[_%](?![^\n]*booktabs)", re.sub(r"^%.*\n", "", tex)), "an unescaped character"


def test_thresholds_of_another_split(tables):
    folder, labels, scores = tables
    other = labels.assign(image=[f"tune {n}" for n in labels["image"]])
    other.to_csv(folder / "tune_labels.csv", index=False)
    scores.assign(image=other["image"], Mass=scores["Mass"] + 5).to_csv(folder / "tune.csv", index=False)
    arguments = ("--out", folder / "out", "--resamples", 20, "--operating-point", "youden")
    assert evaluate(folder, *arguments) == 0
    own = json.loads((folder / "out" / "metrics.json").read_text())
    tuned = ("--tune-predictions", folder / "tune.csv", "--tune-labels", folder / "tune_labels.csv")
    assert evaluate(folder, *arguments, *tuned) == 0
    got = json.loads((folder / "out" / "metrics.json").read_text())
    assert "chosen on 80 others" in got["operating_point"]
    at = {name: f["operating"]["threshold"] for name, f in own["per_class"].items()}
    assert got["per_class"]["Mass"]["operating"]["threshold"] == pytest.approx(at["Mass"] + 5, abs=1e-9)
    assert got["per_class"]["Edema"]["operating"]["threshold"] == pytest.approx(at["Edema"], abs=1e-9)
    assert got["per_class"]["Mass"]["operating"]["sensitivity"] < own["per_class"]["Mass"]["operating"]["sensitivity"]


def test_thresholds_from_the_measured_images_are_refused(tables, capsys):
    folder, *_ = tables
    assert evaluate(folder, "--operating-point", "f1", "--tune-predictions", folder / "scores.csv", "--tune-labels",
                    folder / "labels.csv") == 2  # fmt: skip
    assert "80 images are in the split that fixes the thresholds" in capsys.readouterr().err


def test_patients_as_units(tables, capsys):
    folder, labels, scores = tables
    assert evaluate(folder, "--unit", "patient", "--pool", "max", "--json", "--resamples", 20) == 0
    got = json.loads(capsys.readouterr().out)
    merged = scores[["Mass"]].groupby(labels["patient"]).max(), labels.groupby("patient")["Mass"].max()
    wanted = metrics.roc_auc_score(merged[1], merged[0]["Mass"])
    assert got["per_class"]["Mass"]["auroc"] == pytest.approx(wanted, abs=1e-12)
    assert (got["n_images"], got["n_units"]) == (80, labels["patient"].nunique())


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.names += [name for name, _ in attrs if name.startswith("on")]


def test_markup_in_names_stays_text(tmp_path):
    evil = "<script>alert(1)</script>"
    worse = '" onmouseover="x'
    for name, values in (("scores", (0.1, 0.9)), ("labels", (0, 1))):
        with (tmp_path / f"{name}<img src=x onerror=y>.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image", evil, worse, *(("group",) if name == "labels" else ())))
            for i in range(60):
                rows.writerow((f"{evil}{i}.png", values[i % 2], values[i % 3 > 0],
                               *((evil if i % 4 > 1 else "b",) if name == "labels" else ())))  # fmt: skip
    files = [str(next(tmp_path.glob(f"{name}*"))) for name in ("scores", "labels")]
    arguments = ["evaluate", "--predictions", files[0], "--labels", files[1], "--out", str(tmp_path / "out")]
    arguments += ["--by", "group", "--resamples", "10", "--operating-point", "threshold=0.5"]
    assert main(arguments) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "onmouseover", "onerror"} & set(tags.names)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either --predictions or --weights"),
        (["--predictions", "p", "--weights", "w"], "either --predictions or --weights"),
        (["--predictions", "p"], "--labels is needed"),
        (["--weights", "w", "--labels", "l"], "give their folder with --images"),
        (["--predictions", "p", "--labels", "l", "--negation"], "need a model"),
        (["--predictions", "p", "--labels", "l", "--list", "x"], "--list goes with --benchmark"),
        (["--predictions", "p", "--labels", "l", "--prevalence", "0.1"], "go with --operating-point"),
        (["--predictions", "p", "--labels", "l", "--tune-labels", "x"], "go together"),
        (["--predictions", "p", "--drawn", "5"], "--drawn goes with --weights"),
        (["--predictions", "p", "--labels", "l", "--resamples", "0"], "at least 1"),
        (["--predictions", "p", "--labels", "l"], "The table p does not exist"),
        (["--predictions", "p", "--labels", "l", "--benchmark", "openi"], "p does not exist"),
    ],
)
def test_wrong_combinations_are_sentences(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("given", ["1.5", "Mass=2", "Nodule=0.1", "x"])
def test_prevalence_is_read_strictly(tables, given, capsys):
    folder, *_ = tables
    assert evaluate(folder, "--operating-point", "f1", "--prevalence", given) == 2
    assert "--prevalence takes" in capsys.readouterr().err


def chestxdet(folder, strength, count=542):
    """Made-up labels of ChestX-Det10's form, and predictions whose AUROC grows with the strength."""
    from carzero.evaluate.benchmark import load_benchmark

    classes = load_benchmark("chestxdet10").classes
    rng = np.random.default_rng(0)
    present = rng.random((count, 10)) < 0.3
    entries = [{"file_name": f"{i}.png", "syms": [c for c, p in zip(classes, row) if p], "boxes": []}
               for i, row in enumerate(present)]  # fmt: skip
    (folder / "test.json").write_text(json.dumps(entries))
    scores = pd.DataFrame(rng.normal(size=present.shape) + strength * present, columns=classes)
    scores.insert(0, "image", [f"{i}.png" for i in range(count)])
    scores.to_csv(folder / "p.csv", index=False)
    return metrics.roc_auc_score(present, scores[list(classes)])


def verify(folder, *arguments):
    return main(["verify", "--benchmark", "chestxdet10", "--labels", str(folder / "test.json"), "--predictions",
                 str(folder / "p.csv"), *arguments])  # fmt: skip


def test_verify_passes_a_model_that_reaches_the_published_figure_and_fails_another(tmp_path, capsys):
    # normal scores of unit spread apart by d have an AUROC of Phi(d / sqrt 2): 0.796 at 1.17
    measured = chestxdet(tmp_path, 1.17)
    assert measured == pytest.approx(0.796, abs=0.02)
    assert verify(tmp_path, "--tolerance", "0.02") == 0
    said = capsys.readouterr().out
    assert f"pass  macro_auroc: expected 0.796, measured {measured:.5g}" in said
    assert "pass  images: expected 542, measured 542" in said
    chestxdet(tmp_path, 0.5)
    assert verify(tmp_path, "--json") == 1
    got = json.loads(capsys.readouterr().out)
    assert (got["passed"], [line["passed"] for line in got["lines"]]) == (False, [True, False])
    chestxdet(tmp_path, 1.17, count=400)
    assert verify(tmp_path, "--tolerance", "0.03") == 1
    assert "FAIL  images: expected 542, measured 400" in capsys.readouterr().out


def test_verify_needs_a_published_figure(tmp_path, capsys):
    chestxdet(tmp_path, 1)
    assert verify(tmp_path, "--reference", "GPT") == 2
    assert "it has those of CARZero, RadZero-224, SentZero" in capsys.readouterr().err


def test_another_number_of_images_is_said_in_every_table(tmp_path, capsys):
    chestxdet(tmp_path, 1, count=50)
    assert main(["evaluate", "--benchmark", "chestxdet10", "--labels", str(tmp_path / "test.json"), "--predictions",
                 str(tmp_path / "p.csv"), "--out", str(tmp_path / "out"), "--resamples", "20"]) == 0  # fmt: skip
    sentence = "50 images were measured where chestxdet10 has 542"
    assert sentence in capsys.readouterr().out
    for name in ("report.md", "index.html", "metrics.json"):
        assert sentence in (tmp_path / "out" / name).read_text()
