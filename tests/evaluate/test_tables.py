"""Joining predictions to labels by image name; pooling; and the sentence for every file that is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from carzero.errors import UserError
from carzero.evaluate.joining import join
from carzero.evaluate.tables import read_labels, read_predictions
from carzero.evaluate.units import group_names, pool_units


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def joined(write, predictions, labels, **options):
    return join(
        read_predictions(write("p.csv", predictions)),
        read_labels(write("l.csv", labels), patient=options.pop("patient", "patient")),
        **options,
    )


def test_rows_are_joined_by_file_name_whatever_their_order_and_folder(write):
    got = joined(
        write, "image,A,B\n/x/2.png,0.2,-2\nC:\\y\\1.png,0.1,-1\n", "image,B,A,patient\n1.png,1,0,p\nz/2.png,,1,q\n"
    )
    assert got.images == ["1.png", "z/2.png"]
    assert got.classes == ("A", "B")
    assert got.scores.tolist() == [[0.1, -1], [0.2, -2]]
    assert np.array_equal(got.labels, [[0, 1], [1, np.nan]], equal_nan=True)
    assert got.patient.tolist() == ["p", "q"]


def test_names_that_repeat_in_folders_are_told_apart_by_them(write):
    predictions = "image,A\n/d/p1/s1/view1.png,1\n/d/p1/s2/view1.png,2\n/d/p2/s1/view1.png,3\n"
    labels = "Path,A\np2/s1/view1.png,1\np1/s2/view1.png,0\np1/s1/view1.png,0\n"
    assert joined(write, predictions, labels).scores[:, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("predictions", "labels", "says"),
    [
        ("image,A\n1.png,1\n", "image,A\n1.png,1\n2.png,0\n3.png,0\n", r"2 images have no row in .*p\.csv \(2.png, 3"),
        ("image,A\n1.png,1\n9.png,1\n", "image,A\n1.png,1\n", r"1 images have no row in .*l\.csv \(9.png\)"),
        ("image,A\na/1.png,1\nb/1.png,1\n", "image,A\n1.png,1\n", r"1 names occur more than once .*p\.csv \(1.png\)"),
        ("image,A\n1.png,1\n", "image,A\n1.png,1\n1.png,0\n", r"1 names occur more than once in .*l\.csv \(1.png\)"),
        ("image,A\n1.dcm,1\n", "image,A\n1.png,1\n", "without their endings"),
        ("image,A\n" + "".join(f"{i},1\n" for i in range(9)), "image,A\nx,1\n", r"9 images .*\(0, 1, 2, 3, 4 and 4 m"),
        ("image,Masss\n1.png,1\n", "image,Mass\n1.png,1\n", "class 'Masss' in .*Did you mean 'Mass'"),
        ("image,A\n1.png,1\n", "image,A,B\n1.png,1,0\n", r"1 classes of .* have no scores .*\(B\).*--classes"),
        ("image,A\n1.png,1\n", "image,A\n1.png,yes\n", "1 values of 'A' that are not 0, 1, -1 .*'yes'"),
        ("image,A\n1.png,nan\n", "image,A\n1.png,1\n", "1 scores of 'A' that are not finite numbers"),
        ("image,A\n1.png,high\n", "image,A\n1.png,1\n", r"not finite numbers, the first for '1.png' \(high\)"),
        ("image,A\n1.png,inf\n", "image,A\n1.png,1\n", "not finite"),
        ("image,A,A\n1.png,1,2\n", "image,A\n1.png,1\n", "column 'A' more than once"),
        ("image,A\n1.png,1,2\n", "image,A\n1.png,1\n", "line 2, has not as many cells"),
        ("A,B\n1,2\n", "image,A\n1.png,1\n", "name its images in the first column"),
        ("image\n1.png\n", "image,A\n1.png,1\n", "have no class"),
        ("image,A\n", "image,A\n1.png,1\n", "no row"),
        ("", "image,A\n1.png,1\n", "is empty"),
        ("image,A\n1.png,1\n", "image,A,patient\n1.png,1,\n", "name no patient for 1 of 1"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(write, predictions, labels, says):
    with pytest.raises(UserError, match=says):
        joined(write, predictions, labels)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_predictions(tmp_path / "no.csv")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_labels(tmp_path / "picture.png")


@pytest.mark.parametrize(("uncertain", "value"), [("ignore", np.nan), ("positive", 1.0), ("negative", 0.0)])
def test_uncertain_labels(write, uncertain, value):
    got = joined(write, "image,A\n1,5\n2,6\n", "image,A\n1,-1\n2,1\n", uncertain=uncertain)
    assert np.array_equal(got.labels[:, 0], [value, 1], equal_nan=True)


def test_classes_can_be_chosen_and_metadata_is_kept(write):
    labels = "image,A,B,sex,flag\n1,1,0,F,1\n2,0,1,M,0\n"
    got = joined(write, "image,B,A\n1,5,7\n2,6,8\n", labels, by=("flag",))
    assert got.classes == ("B", "A")
    assert list(got.columns) == ["sex", "flag"]
    assert joined(write, "image,B\n1,5\n2,6\n", labels, classes=("B",)).labels[:, 0].tolist() == [0, 1]


def test_pooling_by_study_and_patient(write):
    labels = "image,A,patient,study,view\n1,1,p,s1,PA\n2,0,p,s1,AP\n3,,p,s2,PA\n4,0,q,s1,PA\n"
    sample = joined(write, "image,A\n1,1\n2,3\n3,10\n4,4\n", labels)
    study = pool_units(sample, "study", "mean")
    assert study.images == ["p/s1", "p/s2", "q/s1"], "the study s1 of another patient is another study"
    assert study.scores[:, 0].tolist() == [2, 10, 4]
    assert np.array_equal(study.labels[:, 0], [1, np.nan, 0], equal_nan=True)
    assert study.patient.tolist() == ["p", "p", "q"]
    assert pd.isna(study.columns["view"][0]), "its images differ"
    assert study.columns["view"].tolist()[1:] == ["PA", "PA"]
    patient = pool_units(sample, "patient", "max")
    assert patient.scores[:, 0].tolist() == [10, 4]
    assert pool_units(sample, "image") is sample
    with pytest.raises(UserError, match="need a column 'study'"):
        pool_units(joined(write, "image,A\n1,1\n", "image,A\n1,1\n"), "study")


def test_groups_of_ages_quartiles_and_names(write):
    rows = "".join(f"{i},1,{age},{i}\n" for i, age in enumerate([5, 18, 39.5, 40, 79, 80, "", 20, 21, 22, 23, 24]))
    sample = joined(write, "image,A\n" + "".join(f"{i},0\n" for i in range(12)), "image,A,age,dose\n" + rows)
    assert group_names(sample, "age")[:7] == [
        "< 18", "18 to < 40", "18 to < 40", "40 to < 60", "60 to < 80", ">= 80", "(unknown)",
    ]  # fmt: skip
    assert sorted(set(group_names(sample, "dose"))) == ["2.75 to < 5.5", "5.5 to < 8.25", "< 2.75", ">= 8.25"]
