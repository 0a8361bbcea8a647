"""The demo from drawing to page at a size of seconds: it ends, its outputs agree, and they can be used."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import carzero
from carzero.cli import main
from carzero.data.phantom import FINDINGS
from carzero.demo import run
from carzero.demo.page import data_uri, loss_curve, write_page
from carzero.demo.page_context import ROWS
from carzero.demo.recipe import FULL, QUICK
from carzero.errors import UserError
from carzero.ops.spec import DecoderSpec

TINY = dataclasses.replace(
    QUICK,
    train_images=80,
    test_images=40,
    steps=4,
    cosine_steps=2,
    shuffled_steps=2,
    batch_size=8,
    image_size=32,
    resamples=20,
    pointed=1,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    fast = pytest.MonkeyPatch()
    # the published sizes take seconds
    small = DecoderSpec(width=32, heads=2, ffn=32)
    fast.setattr(run, "time_op", partial(run.time_op, memories=1, queries=2, spec=small))
    try:
        assert run.run_drawn(folder, TINY, seed=1) == folder / "index.html"
    finally:
        fast.undo()
    return folder


class Page(HTMLParser):
    """Addresses and text of a page; fails on tags that do not nest."""

    VOID = ("meta", "img", "br", "line", "polyline", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs) if tag in self.VOID else pytest.fail(f"<{tag}/> closes nothing in HTML")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_holds_everything_itself(out):
    page = Page(out / "index.html")
    assert page.addresses
    assert all(a.startswith(("data:image/jpeg;base64,", "#")) for a in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", (out / "index.html").read_text())
    for name, _, _ in ROWS.values():
        assert name in page.text
    for finding in FINDINGS:
        assert finding in page.text
    metrics = json.loads((out / "metrics.json").read_text())
    for name, pair in metrics["unseen_pair"].items():
        assert f"{name} {pair['value']:.3f}" in page.text
    assert "not a medical device" in page.text
    # the quick recipe trains too little for the aims, so it does not judge itself by them
    assert "met." not in page.text
    image = base64.b64decode(page.addresses[0].split(",")[1])
    assert cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED) is not None


def test_metrics_hold_the_rows_and_the_page_shows_them(out):
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["macro_auroc"] == metrics["rows"]["held_out"]["value"]
    assert set(metrics["rows"]) == set(ROWS)
    for row in metrics["rows"].values():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert f"{metrics['macro_auroc']:.3f}" in (out / "index.html").read_text()
    assert len(metrics["losses"]) == metrics["steps"]["carzero"] == 4
    assert metrics["seconds"]["total"] == pytest.approx(sum(v for k, v in metrics["seconds"].items() if k != "total"))
    assert set(metrics["findings"]) == set(FINDINGS)
    assert {"reference", "torch", "published"} <= set(metrics["speed"]["seconds"])
    for seconds in metrics["speed"]["seconds"].values():
        assert set(seconds) == {"forward", "forward+backward"}
        assert min(seconds.values()) > 0
    assert not (out / ".work").exists()


def test_model_classifies_the_images_that_were_left(out, tmp_path):
    scores = tmp_path / "scores.csv"
    asked = ["classify", str(out / "images"), "--prompts", str(out / "prompts.json"), "--weights", str(out / "model")]
    assert main([*asked, "--out", str(scores)]) == 0
    table, labels = pd.read_csv(scores), pd.read_csv(out / "test_labels.csv")
    assert list(table.columns) == ["image", *FINDINGS]
    assert len(table) == run.KEPT_IMAGES
    assert {Path(n).name for n in table["image"]} == {Path(n).name for n in labels["image"]}
    assert carzero.load(out / "model").config.image.stem == "conv"


def test_stopped_training_leaves_the_earlier_page(out, monkeypatch):
    before = (out / "index.html").read_bytes()
    stopped = run.train

    def interrupted(config, **options):
        return dataclasses.replace(stopped(dataclasses.replace(config, steps=1), **options), signal=15, step=1)

    monkeypatch.setattr(run, "train", interrupted)
    with pytest.raises(UserError, match="stopped by signal 15 after 1 of 4 steps"):
        run.run_drawn(out, TINY)
    assert (out / "index.html").read_bytes() == before


def test_shuffled_texts_are_the_same_texts_elsewhere(tmp_path):
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(40)], "text": [f"t{k}" for k in range(40)]})
    table.to_csv(tmp_path / "train.csv", index=False)
    moved = pd.read_csv(run._shuffled(tmp_path / "train.csv", 0))
    assert moved["image"].tolist() == table["image"].tolist()
    assert sorted(moved["text"]) == sorted(table["text"])
    assert (moved["text"] == table["text"]).mean() < 0.2


def test_own_images_make_the_same_page(out, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.png", "<b>.png"):
        cv2.imwrite(str(folder / name), np.random.default_rng(len(name)).integers(0, 255, (50, 40), dtype=np.uint8))
    (folder / "c.png").write_text("no image")
    asked = ["demo", "--images", str(folder), "--out", str(tmp_path / "page"), "--weights", str(out / "model")]
    assert main([*asked, "--classes", "nodule,edema"]) == 1
    page = Page(tmp_path / "page" / "index.html")
    assert "2 images scored against 2 prompts." in page.text
    assert "<b>.png" in page.text
    assert "c.png" in page.text
    assert "Could not be read" in page.text
    # beside a demo's own page, which stays
    (folder / "c.png").unlink()
    before = (out / "index.html").read_bytes()
    assert main(["demo", "--images", str(folder), "--out", str(out)]) == 0
    assert (out / "index.html").read_bytes() == before
    assert "images.html" in capsys.readouterr().out


def test_mistakes_are_sentences(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--classes", "a"]) == 2
    assert "go with --images" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "no"), "--images", str(tmp_path)]) == 2
    assert "There is no model in" in capsys.readouterr().err


def test_a_blank_that_nothing_fills_is_an_error(tmp_path):
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", {"title": "t"})
    assert list(tmp_path.iterdir()) == []


def test_data_uri_shrinks_and_keeps_colour():
    image = np.zeros((100, 400, 3), np.uint8)
    image[..., 0] = 250
    data = base64.b64decode(data_uri(image).split(",")[1])
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (90, 360, 3)
    # OpenCV's order: red is last
    assert back[45, 180, 2] > 240
    assert back[45, 180, 0] < 10


def test_loss_curve_lies_inside_its_drawing():
    curve = loss_curve([6.0, 5.0, 4.0, 3.0], "note")
    points = np.array([[float(v) for v in p.split(",")] for p in curve["raw"].split()])
    assert points[0].tolist() == [40.0, pytest.approx(190 - 180 * 6 / 6.12, abs=0.1)]
    assert points[-1][0] == 352
    assert (np.diff(points[:, 1]) > 0).all(), "down on the page as the loss falls"
    assert loss_curve([2.0], "one step")["raw"]


def test_full_recipe_keeps_baselines_to_the_same_budget():
    assert FULL.steps == FULL.cosine_steps
    assert QUICK.steps == QUICK.cosine_steps
