"""Sets of phantoms: shares, balance, what training is not shown, and the files on disk."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from carzero.data.phantom import FINDINGS, draw, label_column, labels_of, split, write_dataset
from carzero.errors import UserError
from carzero.evaluate.boxes import read_boxes

PAIRS = [("nodule", "left"), ("pleural effusion", "right")]


def test_shares_and_sides():
    train, _ = split(4000, 10, seed=1)
    plans = [train.findings(i) for i in range(len(train))]
    for name, kind in FINDINGS.items():
        mine = [f for p in plans for f in p if f.name == name]
        assert 0.15 < len(mine) / len(plans) < 0.35
        if kind.sided:
            # Standard error of a half among some 800 is 0.018.
            assert abs(np.mean([f.side == "left" for f in mine if f.side != "bilateral"]) - 0.5) < 0.07
        counts = [sum(f.severity == s for f in mine) for s in kind.severities]
        assert min(counts) / sum(counts) > 0.12
    assert abs(np.mean([not p for p in plans]) - 0.25) < 0.03
    both = np.mean([len(p) >= 2 for p in plans])
    assert both > 0.4


def test_held_out_pairs_never_occur_in_training_but_do_in_the_test():
    train, test = split(1500, 600, held_out_pairs=PAIRS)
    for part, shown in ((train, False), (test, True)):
        labels = [labels_of(part.findings(i)) for i in range(len(part))]
        for pair in PAIRS:
            assert any(row[pair] for row in labels) == shown
    free, _ = split(1500, 600)
    for name, _ in PAIRS:
        shares = [np.mean([labels_of(s.findings(i))[name] for i in range(1500)]) for s in (train, free)]
        assert shares[0] == shares[1]


def test_training_and_test_are_different_patients_and_independent_of_counts():
    train, test = split(50, 5, size=48)
    longer, same = split(80, 5, size=48)
    assert {train.first + i for i in range(50)}.isdisjoint({test.first + i for i in range(5)})
    np.testing.assert_array_equal(test[2].image, same[2].image)
    np.testing.assert_array_equal(train[7].image, longer[7].image)
    np.testing.assert_array_equal(train[-1].image, draw(49, size=48).image)
    with pytest.raises(IndexError, match=r"outside 0\.\.49"):
        train[50]


def test_written_files_say_what_was_drawn(tmp_path):
    train, _ = split(12, 1, seed=2, size=48, held_out_pairs=PAIRS)
    manifest, labels = write_dataset(tmp_path, train)
    rows = list(csv.DictReader(manifest.open(encoding="utf-8")))
    table = list(csv.DictReader(labels.open(encoding="utf-8")))
    assert list(rows[0]) == ["image", "text", "patient", "split"]
    assert len(rows) == len(table) == len({r["patient"] for r in rows}) == 12
    for phantom, row, marks in zip(train, rows, table):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / row["image"]), cv2.IMREAD_UNCHANGED), phantom.image)
        assert row["image"] == marks["image"]
        assert row["split"] == "train"
        for sentence in (*phantom.report, *phantom.aligned):
            assert sentence in row["text"]
        assert {k: int(marks[label_column(k)]) for k in phantom.labels} == phantom.labels
    boxes = read_boxes(tmp_path / "train_boxes.csv")
    for phantom, row in zip(train, rows):
        for finding in phantom.findings:
            assert finding.box in boxes.of(row["image"], finding.name, 48, 48)


@pytest.mark.parametrize("pair", [("edema", "left"), ("nodule", "both"), ("nodul", "left")])
def test_pairs_that_cannot_be_held_out(pair):
    with pytest.raises(UserError, match="cannot hold out"):
        split(1, 1, held_out_pairs=[pair])


def test_both_sides_cannot_be_held_out():
    with pytest.raises(UserError, match="both sides of nodule"):
        split(1, 1, held_out_pairs=[("nodule", "left"), ("nodule", "right")])
