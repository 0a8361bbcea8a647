"""The checks for known weaknesses: figures on scores whose truth is known, and a model asked through the command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from carzero.assess.subject import drawn_subject, subject_of_files
from carzero.assess.weaknesses import CHECKS, prompts_of
from carzero.cli import main
from carzero.data.phantom import FINDINGS
from carzero.errors import UserError
from carzero.evaluate import checks
from carzero.evaluate.tables import Labels, Sample
from carzero.prompts.sets import PromptSet


def sample(n=300, seed=0, strength=1.5):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < (0.4, 0.2)).astype(float)
    return Sample([str(i) for i in range(n)], ("a", "b"), labels, rng.normal(size=(n, 2)) + strength * labels), rng


def rows(found):
    return {row["name"]: row["interval"][0] for row in found["rows"]}


def test_a_model_that_reads_no_and_one_that_does_not():
    s, rng = sample()
    deaf = checks.negation(s, s.scores + 0.3 * rng.normal(size=s.scores.shape), resamples=20)
    hears = checks.negation(s, -s.scores + 0.3 * rng.normal(size=s.scores.shape), resamples=20)
    assert rows(deaf)["AUROC of the denial for absence"] < 0.25
    assert rows(hears)["AUROC of the denial for absence"] > 0.8
    assert rows(deaf)["the true one of the two scores higher"] == pytest.approx(0.5, abs=0.06)
    assert rows(hears)["the true one of the two scores higher"] > 0.7
    # a denial that always equals its prompt is half right everywhere
    assert rows(checks.negation(s, s.scores, resamples=5))["the true one of the two scores higher"] == 0.5


def test_negation_equals_scikit_learn():
    s, rng = sample(seed=1)
    denied = rng.normal(size=s.scores.shape)
    got = checks.negation(s, denied, resamples=5)
    wanted = np.mean([roc_auc_score(1 - s.labels[:, c], denied[:, c]) for c in range(2)])
    assert rows(got)["AUROC of the denial for absence"] == pytest.approx(wanted, abs=1e-12)
    right = [((s.scores > denied)[s.labels[:, c] == v, c] == v).mean() for c in range(2) for v in (0, 1)]
    assert rows(got)["the true one of the two scores higher"] == pytest.approx(np.mean(right), abs=1e-12)


def test_normality():
    s, rng = sample(seed=2)
    abnormal = s.labels.any(1)
    normal = rng.normal(size=300) - 2 * abnormal
    got = checks.normality(s, normal, resamples=20)
    assert got["normal_images"] == (~abnormal).sum()
    assert rows(got)["AUROC of the normal prompt"] == pytest.approx(roc_auc_score(~abnormal, normal), abs=1e-12)
    assert rows(got)["AUROC of the highest finding"] == pytest.approx(
        roc_auc_score(abnormal, s.scores.max(1)), abs=1e-12
    )
    # an offset of one prompt's logits changes the raw maximum and not the standardised one
    shifted = Sample(s.images, s.classes, s.labels, s.scores + np.array([0, 50]))
    again = rows(checks.normality(shifted, normal, resamples=5))
    name = "AUROC of the highest finding, standardised"
    assert again[name] == pytest.approx(rows(got)[name], abs=1e-12)
    assert again["AUROC of the highest finding"] < rows(got)["AUROC of the highest finding"]


def test_wording():
    s, rng = sample(seed=3)
    worse = s.scores + 3 * rng.normal(size=s.scores.shape)
    got = checks.wording(s, {"good": s.scores, "worse": worse}, resamples=20)
    spread = [
        roc_auc_score(s.labels[:, c], s.scores[:, c]) - roc_auc_score(s.labels[:, c], worse[:, c]) for c in (0, 1)
    ]
    assert rows(got)["spread of AUROC over wordings"] == pytest.approx(np.mean(spread), abs=1e-12)
    same = checks.wording(s, {"one": s.scores, "two": 3 * s.scores + 1}, resamples=5)
    assert rows(same)["spread of AUROC over wordings"] == 0
    assert rows(same)["rank agreement between wordings"] == pytest.approx(1, abs=1e-12)


def test_sides_are_judged_on_images_with_the_finding_on_one_of_them():
    rng = np.random.default_rng(4)
    side = rng.integers(0, 4, 400)
    left, right = np.isin(side, (1, 3)).astype(float)[:, None], np.isin(side, (2, 3)).astype(float)[:, None]
    names = [str(i) for i in range(400)]
    noise = rng.normal(size=(2, 400, 1))
    blind = [Sample(names, ("a",), y, 2 * np.maximum(left, right) + e) for y, e in zip((left, right), noise)]
    knows = [Sample(names, ("a",), y, 2 * y + e) for y, e in zip((left, right), noise)]
    key = "AUROC of left less right prompt"
    assert rows(checks.laterality(*blind, resamples=5))[key] == pytest.approx(0.5, abs=0.1)
    got = checks.laterality(*knows, resamples=20)
    one = (side == 1) | (side == 2)
    difference = (knows[0].scores - knows[1].scores)[one, 0]
    assert rows(got)[key] == pytest.approx(roc_auc_score(left[one, 0], difference), abs=1e-12)
    assert rows(got)[key] > 0.9
    assert (got["per_class"]["a"]["left"], got["per_class"]["a"]["right"]) == ((side == 1).sum(), (side == 2).sum())


def test_drawn_radiographs_ask_all_that_the_checks_need():
    subject = drawn_subject(6, seed=3)
    assert subject.prompts.classes == tuple(FINDINGS)
    asked = {check: prompts_of(check, subject) for check in CHECKS}
    assert asked["negation"][0].prompts[0] == (f"There is no {next(iter(FINDINGS))}",)
    sided = asked["laterality"]
    assert sided[0].classes == tuple(name for name, kind in FINDINGS.items() if kind.sided)
    assert sided[1].prompts[0] == (f"There is right {sided[1].classes[0]}",)
    table = subject.labels.table
    for name in sided[0].classes:
        either = table[[f"{name}, left", f"{name}, right"]].max(axis=1)
        assert (either <= table[name]).all()
    with pytest.raises(UserError, match="at least 2"):
        drawn_subject(1)


def test_images_are_found_by_name_and_their_absence_is_an_error(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    prompts = PromptSet.of(["Mass"])
    table = pd.DataFrame({"Mass": [1, 0]})
    found = subject_of_files(tmp_path, Labels("l", ["3.png", "x/1.png"], table), prompts)
    assert [f.path.relative_to(tmp_path).as_posix() for f in found.images] == ["b/3.png", "a/1.png"]
    with pytest.raises(UserError, match=r"1 of 2 images that l names are not in .*: 4.png"):
        subject_of_files(tmp_path, Labels("l", ["3.png", "4.png"], table), prompts)
    with pytest.raises(UserError, match=r"in several places of .*: 2.png"):
        subject_of_files(tmp_path, Labels("l", ["3.png", "2.png"], table), prompts)
    # names that repeat among the labels are told apart by their folders
    both = subject_of_files(tmp_path, Labels("l", ["b/2.png", "a/2.png"], table), prompts)
    assert [f.path.parent.name for f in both.images] == ["b", "a"]


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """A tiny untrained model that knows the words of all checks."""
    import torch

    from carzero import CARZero, CARZeroConfig
    from carzero.assess.weaknesses import NORMAL, WORDINGS
    from carzero.models.tokenizer import word_tokenizer

    tokenizer = word_tokenizer([*FINDINGS, *NORMAL, *WORDINGS, "left right no"])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer).save_pretrained(folder)
    return folder


def test_all_checks_on_drawn_radiographs_through_the_command(knowing, tmp_path, capsys):
    flags = [f"--{check}" for check in CHECKS]
    arguments = ["evaluate", "--weights", str(knowing), "--drawn", "40", "--resamples", "20", *flags]
    assert main([*arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    got = json.loads(capsys.readouterr().out)
    assert set(got["checks"]) == set(CHECKS)
    assert got["n_images"] == 40
    # an untrained model knows nothing, so its figures are chance, with wide intervals around it
    low, high = got["macro_auroc_ci"]
    assert low < 0.5 < high or abs(got["macro_auroc"] - 0.5) < 0.2
    assert "All radiographs are drawn" in (tmp_path / "out" / "index.html").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "macro AUROC of “Evidence of {finding}”" in text
    from carzero import ZeroShotClassifier

    subject = drawn_subject(40)
    table = ZeroShotClassifier(str(knowing), subject.prompts).predict(subject.images)
    wanted = [
        roc_auc_score(subject.labels.table[name], table[name])
        for name in FINDINGS if 0 < subject.labels.table[name].sum() < 40
    ]  # fmt: skip
    assert got["macro_auroc"] == pytest.approx(np.mean(wanted), abs=1e-12)


def test_a_model_on_labelled_files_and_the_sides_they_lack(knowing, tmp_path, capsys):
    from carzero.data.phantom import split, write_dataset

    _, labels = write_dataset(tmp_path, split(0, 6)[1], split="test")
    base = ["evaluate", "--weights", str(knowing), "--images", str(tmp_path / "images"), "--labels", str(labels),
            "--resamples", "10", "--json"]  # fmt: skip
    assert main([*base, "--classes", "nodule,edema", "--laterality"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert list(got["per_class"]) == ["nodule", "edema"]
    assert list(got["checks"]["laterality"]["per_class"]) == ["nodule"]
    assert main([*base, "--classes", "edema", "--laterality"]) == 2
    assert "needs to know sides" in capsys.readouterr().err
    table = pd.read_csv(labels)
    table.loc[0, "image"] = "images/other.png"
    table.to_csv(labels, index=False)
    assert main([*base, "--classes", "edema"]) == 2
    assert "1 of 6 images" in capsys.readouterr().err


def test_a_model_on_a_benchmark_by_its_prompts(tmp_path, capsys):
    import cv2
    import torch

    from carzero import CARZero, CARZeroConfig, ZeroShotClassifier
    from carzero.models.tokenizer import word_tokenizer
    from carzero.prompts import prompt_set

    prompts = prompt_set("chestxdet10")
    tokenizer = word_tokenizer(prompts.texts)
    torch.manual_seed(1)
    CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    entries = []
    for i in range(8):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), rng.integers(0, 256, (40, 40), dtype=np.uint8))
        entries.append({"file_name": f"{i}.png", "syms": ["Mass"] if i % 2 else ["Nodule", "Mass"][:1], "boxes": []})
    (tmp_path / "test.json").write_text(json.dumps(entries))
    arguments = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "test.json"), "--resamples", "10"]
    command = ["evaluate", "--weights", str(tmp_path / "model"), "--benchmark", "chestxdet10", *arguments, "--json"]
    assert main(command) == 0
    got = json.loads(capsys.readouterr().out)
    table = ZeroShotClassifier(str(tmp_path / "model"), prompts).predict(tmp_path / "images")
    assert got["per_class"]["Mass"]["auroc"] == pytest.approx(roc_auc_score([0, 1] * 4, table["Mass"]), abs=1e-12)
    assert got["per_class"]["Nodule"]["negatives"] == 4
    assert [r["model"] for r in got["references"]] == ["CARZero", "RadZero-224", "SentZero"]
