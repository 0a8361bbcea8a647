"""`carzero retrieve`: lists, figures, exit codes and sentences."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.data.files import list_images
from carzero.data.phantom import draw
from carzero.models.checkpoint import load
from carzero.zeroshot.retrieve_command import encode_files


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiographs")
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), draw(index, size=64).image)
    return folder


TEXTS = ["There is effusion.", "There is a left mass", "There is effusion.", "No effusion", "right mass", "no mass"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = {"image": [f"x/{i}.jpg" for i in range(6)], "text": TEXTS, "patient": ["a", "a", "b", "c", "d", "e"]}
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def retrieve(*arguments):
    return main(["retrieve", *map(str, arguments)])


def similarity(weights, images, texts):
    model = load(weights)
    encoded, read, _ = encode_files(model, list_images([images]), 0)
    return [file.name for file in read], model.similarity(encoded, texts).numpy()


def test_lists_and_figures_are_those_of_the_similarity(weights, images, texts, tmp_path, capsys):
    out = tmp_path / "out"
    assert retrieve(images, "--texts", texts, "--weights", weights, "--out", out, "--top", 3) == 0
    different = list(dict.fromkeys(TEXTS))
    names, scores = similarity(weights, images, different)
    table = pd.read_csv(out / "image_to_text.csv")
    assert list(table.columns) == ["image", "rank", "text", "score"]
    assert len(table) == 18
    for row, name in enumerate(names):
        best = np.argsort(-scores[row], kind="stable")[:3]
        assert table[table["image"] == name]["text"].tolist() == [different[i] for i in best]
    table = pd.read_csv(out / "text_to_image.csv")
    for column, text in enumerate(different):
        best = np.argsort(-scores[:, column], kind="stable")[:3]
        assert table[table["text"] == text]["image"].tolist() == [names[i] for i in best]
    # the first and third image have the same text: either is right for it
    own = [different.index(text) for text in TEXTS]
    ranks = [1 + (scores[i] > scores[i, own[i]]).sum() for i in range(6)]
    back = []
    for column in range(5):
        right = np.array(own) == column
        back.append(1 + (scores[~right, column] > scores[right, column].max()).sum())
    said = capsys.readouterr().out
    for direction, found, candidates in (("image to text", ranks, 5), ("text to image", back, 6)):
        line = re.search(rf"{direction}: (.*)", said)[1]
        assert f"n={len(found)} of {candidates} candidates" in line
        assert f"R@1 {np.mean(np.array(found) <= 1):.3f} (" in line
        assert f"R@5 {np.mean(np.array(found) <= 5):.3f} (" in line
        assert f"median rank {np.median(found):g}" in line
        assert line.endswith("95 % intervals by patients")


def test_a_shortlist_says_what_it_loses(weights, images, texts, tmp_path, capsys):
    assert retrieve(images, "--texts", texts, "--weights", weights, "--out", tmp_path, "--shortlist", 2) == 0
    said = capsys.readouterr().out
    assert "a shortlist of 2 by cosine, scored by the op" in said
    assert len(re.findall(r"0\.\d{3} lost by the shortlist", said)) == 2
    assert len(pd.read_csv(tmp_path / "image_to_text.csv")) == 12


def test_plain_lines_and_an_unreadable_image(weights, images, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("There is effusion\n\nno mass\n  no mass  \n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert (
        retrieve(images, tmp_path / "more", "--texts", tmp_path / "texts.txt", "--weights", weights, "--out", out) == 1
    )
    said = capsys.readouterr()
    assert "bad.png" in said.err
    assert "6 images and 2 texts, all pairs scored" in said.out
    assert "R@" not in said.out


def test_one_sentence_for_each_mistake(weights, images, texts, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "no.csv").write_text("image,report\na,b\n")
    (tmp_path / "hole.csv").write_text('image,text\na,b\nb," "\n')
    (tmp_path / "others.csv").write_text("image,text\nz.png,there is mass\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(b"no image")
    end = ("--weights", weights, "--out", tmp_path / "out")
    mistakes = {
        (images, "--texts", tmp_path / "gone.csv", *end): "cannot be read: No such file",
        (images, "--texts", tmp_path / "gone.json", *end): "must end in .txt or .csv",
        (images, "--texts", tmp_path / "empty.txt", *end): "holds no text",
        (images, "--texts", tmp_path / "no.csv", *end): "needs a column text, got image, report",
        (images, "--texts", tmp_path / "hole.csv", *end): "line 3: the text is empty",
        (images, "--texts", tmp_path / "others.csv", *end): "No text names one of the images",
        (images, "--texts", texts, *end, "--top", 0): "must be at least 1",
        (tmp_path / "folder", "--texts", texts, *end): "None of the 1 images can be read",
    }
    for arguments, words in mistakes.items():
        assert retrieve(*arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
