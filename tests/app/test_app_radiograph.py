"""Files become grey images or a sentence; neither their names nor their headers are said."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from app_inputs import bomb, radiograph

from carzero.app import radiograph as module
from carzero.app.radiograph import draw_radiograph, open_radiograph
from carzero.data.images import ImageProcessor
from carzero.errors import UserError


def test_the_pixels_are_those_that_the_model_is_given(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), radiograph(0))
    shot = open_radiograph(path)
    assert np.array_equal(shot.grey, ImageProcessor().read(path))
    assert not shot.drawn
    # noise is no radiograph
    assert not shot.verdict.frontal
    assert open_radiograph(path).tag == shot.tag
    path.rename(tmp_path / "other.png")
    assert open_radiograph(tmp_path / "other.png").tag == shot.tag
    cv2.imwrite(str(path), radiograph(1))
    assert open_radiograph(path).tag != shot.tag


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "This file is empty"),
        (b"hello", "This file is not a PNG, JPEG or DICOM file."),
        (b"\x89PNG\r\n\x1a\nxx", "This file starts like a PNG"),
        (bomb(60_000), "This file has more than the 134,217,728 pixels"),
        (bomb(12_000), "This file is 12000 x 12000 pixels; at most 134,217,728"),
        (b"\0" * 128 + b"DICM" + b"DOE^JANE" * 9, "This file is a damaged DICOM file"),
    ],
    ids=["empty", "text", "cut", "bomb", "larger", "dicom"],
)
def test_broken_files_are_a_sentence_without_their_name(tmp_path, content, sentence):
    path = tmp_path / "DOE_JANE"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        open_radiograph(path)
    assert str(raised.value).startswith(sentence)
    assert "DOE" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_too_many_bytes_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(module.MAX_BYTES + 2**20)
    monkeypatch.setattr(ImageProcessor, "read", None)
    with pytest.raises(UserError, match="has 129 MiB; at most 128 are read"):
        open_radiograph(path)


def test_what_a_decoder_says_of_a_header_is_not_repeated(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def failing(*_):
        raise KeyError("DOE^JANE")

    monkeypatch.setattr(ImageProcessor, "read", failing)
    with pytest.raises(UserError, match=r"^This file cannot be read \(KeyError\)\.$"):
        open_radiograph(path)


def test_odd_images_are_read_with_a_note_that_does_not_name_the_file(tmp_path):
    path = tmp_path / "DOE_JANE.png"
    cv2.imwrite(str(path), np.full((40, 40), 7, np.uint8))
    (note,) = open_radiograph(path).notes
    assert note.startswith("This image is almost one flat grey")


def test_drawn_radiographs_say_so_and_repeat():
    one = draw_radiograph(3)
    assert one.drawn
    assert one.grey.shape == (512, 512)
    assert one.tag == draw_radiograph(3).tag != draw_radiograph(4).tag
