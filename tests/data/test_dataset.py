"""Manifests become image-text pairs, or a sentence that says what is wrong with them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from carzero.data.dataset import ManifestDataset
from carzero.data.images import Augmentation, ImageProcessor
from carzero.errors import UserError

TEXTS = ["There is effusion.", "No, there is not.", 'A "quoted", long\nreport.']


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        grey = np.random.default_rng(number).integers(0, 256, (40, 50), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), grey)
    return tmp_path


def table():
    return pd.DataFrame(
        {
            "image": [f"images/{n}.png" for n in range(3)],
            "text": TEXTS,
            "patient": ["007", "007", "008"],
            "split": ["train", "train", "test"],
            "extra": [1, 2, 3],
        }
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_pairs_come_in_order_with_text_as_it_stands(folder, suffix):
    path = folder / f"manifest.{suffix}"
    if suffix == "csv":
        table().to_csv(path, index=False)
    else:
        table().to_parquet(path)
    dataset = ManifestDataset(path, ImageProcessor(64))
    assert dataset.texts == TEXTS
    assert list(dataset.table.columns) == ["image", "text", "patient", "split"]
    assert dataset.table["patient"].tolist() == ["007", "007", "008"]
    for number in range(len(dataset)):
        pixels, text = dataset[number]
        assert torch.equal(pixels, ImageProcessor(64)(folder / "images" / f"{number}.png"))
        assert text == TEXTS[number]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_lists_of_texts_stand_in_for_a_text(folder, suffix):
    lists = [["There is effusion.", "No mass."], ["Normal."], ["A", " ", "B"]]
    rows = table().drop(columns="text")
    if suffix == "csv":
        rows["texts"] = [json.dumps(texts) for texts in lists]
        rows.to_csv(folder / "m.csv", index=False)
    else:
        rows["texts"] = lists
        rows.to_parquet(folder / "m.parquet")
    dataset = ManifestDataset(folder / f"m.{suffix}")
    # blank ones are left out
    assert dataset.parts == [lists[0], lists[1], ["A", "B"]]
    assert dataset.texts == ["There is effusion. No mass.", "Normal.", "A B"]


@pytest.mark.parametrize("cell", ['"There is effusion."', "There is effusion.", "[1]", '{"a": 1}'])
def test_a_cell_that_is_no_list_of_texts_gets_a_sentence(folder, cell):
    pd.DataFrame({"image": ["images/0.png"], "texts": [cell]}).to_csv(folder / "m.csv", index=False)
    with pytest.raises(UserError, match=r"no list of texts in the column texts of row 2.*\[\"There is effusion"):
        ManifestDataset(folder / "m.csv")


def test_absolute_paths_and_splits(folder, tmp_path_factory):
    rows = table()
    rows["image"] = [str(folder / name) for name in rows["image"]]
    path = tmp_path_factory.mktemp("elsewhere") / "m.csv"
    rows.to_csv(path, index=False)
    assert ManifestDataset(path, split="test").texts == TEXTS[2:]
    assert ManifestDataset(path, split="train").images == rows["image"].tolist()[:2]


def test_views_repeat_with_the_generator(folder):
    table().to_csv(folder / "m.csv", index=False)
    dataset = ManifestDataset(folder / "m.csv")
    first, second, third = (dataset.pixels(0, Augmentation(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(dataset.pixels(0), dataset.processor(dataset.images[0]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"image,text\n", "has a header but no rows"),
        (b"image,report\na.png,b\n", "lacks the column text; it needs image and text, .* it has image, report"),
        (b"path,report\na.png,b\n", "lacks the columns image and text"),
        (b"image,text\nimages/0.png,ok\nimages/1.png, \nimages/2.png,\n", r"2 of 3 rows with an empty text \(row 3, 4"),
        (b"image,text\n,ok\n", "1 of 1 rows with an empty image"),
        (b"image,text\nimages/0.png,a\nno/1.png,b\nno/2.png,c\n", "2 of 3 images.*: .*no/1.png, .*no/2"),
        (b"image,text\nimages/0.png,a\xff\n", "is not UTF-8 text"),
        (b"image,text\nimages/0.png,a,b,c\nimages/0.png,a\nimages/0.png,a,b,c,d,e\n", "not a valid csv table"),
    ],
)  # fmt: skip
def test_wrong_manifests_get_a_sentence(folder, content, sentence):
    path = folder / "m.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        ManifestDataset(path)
    assert str(path) in str(caught.value)


def test_wrong_split_missing_file_and_kind_get_a_sentence(folder):
    table().to_csv(folder / "m.csv", index=False)
    table().drop(columns="split").to_csv(folder / "no_split.csv", index=False)
    (folder / "m.parquet").write_bytes(b"not parquet")
    for name, split, sentence in [
        ("m.csv", "valid", "no row of split 'valid'; it has test, train"),
        ("no_split.csv", "test", "has no column split"),
        ("gone.csv", None, "does not exist"),
        ("m.json", None, "must be a .csv or .parquet file"),
        ("m.parquet", None, "not a valid parquet table"),
    ]:
        with pytest.raises(UserError, match=sentence):
            ManifestDataset(folder / name, split=split)


def test_many_missing_images_are_counted_and_the_first_listed(folder):
    pd.DataFrame({"image": [f"no/{n}.png" for n in range(20)], "text": "a"}).to_csv(folder / "m.csv", index=False)
    with pytest.raises(UserError, match=r"20 of 20 images .*no/4.png and 15 more"):
        ManifestDataset(folder / "m.csv")
