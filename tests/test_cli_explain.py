"""`carzero explain`: pictures, names, exit codes and sentences."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from carzero.cli import main


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a b.jpg"):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8))
    return folder


def explain(*arguments):
    return main(["explain", *map(str, arguments)])


def written(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_for_every_image_and_class(weights, images, tmp_path, capsys):
    out = tmp_path / "new" / "maps"
    assert explain(images, "--classes", "Effusion,Lung mass", "--weights", weights, "--out", out) == 0
    assert written(out) == [
        "b.png.Effusion.png", "b.png.Lung_mass.png", "sub_a_b.jpg.Effusion.png", "sub_a_b.jpg.Lung_mass.png"
    ]  # fmt: skip
    for path in out.iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 10
    assert "4 pictures of 2 images x 2 classes. Not a medical device." in capsys.readouterr().out


def test_an_unreadable_image_is_named_and_the_rest_explained(weights, images, tmp_path, capsys):
    (images / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    assert explain(images, "--classes", "Mass", "--weights", weights, "--out", tmp_path / "maps") == 1
    assert written(tmp_path / "maps") == ["b.png.Mass.png", "sub_a_b.jpg.Mass.png"]
    said = capsys.readouterr()
    assert "c.png" in said.err
    assert "Traceback" not in said.err


def test_first_prompt_of_each_class_of_a_file(weights, images, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"effusion": ["there is effusion", "there is left effusion"]}')
    assert explain(images / "b.png", "--prompts", prompts, "--weights", weights, "--out", tmp_path / "maps") == 0
    assert written(tmp_path / "maps") == ["b.png.effusion.png"]


def test_one_sentence_for_each_mistake(weights, images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    mistakes = {
        (images, "--classes", "A", "--weights", weights, "--out", tmp_path / "file"): "cannot be made",
        (images, "--classes", "A", "--weights", tmp_path / "gone", "--out", tmp_path / "maps"): "gone",
        (tmp_path / "empty", "--classes", "A", "--weights", weights, "--out", tmp_path / "maps"): "empty",
        (images, "--prompts", tmp_path / "no.json", "--weights", weights, "--out", tmp_path / "maps"): "no.json",
    }
    for arguments, words in mistakes.items():
        assert explain(*arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
        assert len(said.strip().splitlines()) == 1
