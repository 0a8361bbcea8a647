"""Folders and files become a list of images with unique names."""

from __future__ import annotations

import pytest

from carzero.data.files import list_images
from carzero.errors import UserError


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.png", "b/10.png", "a.png", "c.d/x", "b/notes.txt", ".hidden/no.png", "b/.no.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "set"


def names(inputs):
    return [image.name for image in list_images(inputs)]


def test_a_folder_is_walked_sorted_without_hidden_files_and_nothing_else_is_left_out(tree):
    assert names([tree]) == ["a.png", "b/10.png", "b/2.png", "b/notes.txt", "c.d/x"]
    assert [image.path for image in list_images([str(tree)])][:2] == [tree / "a.png", tree / "b" / "10.png"]


def test_single_files_keep_their_name_and_order(tree):
    assert names([tree / "b" / "2.png", tree / "a.png"]) == ["2.png", "a.png"]


def test_a_file_that_is_given_twice_is_listed_once(tree):
    assert names([tree / "a.png", tree / "b" / "2.png", tree / "a.png"]) == ["a.png", "2.png"]
    assert names([tree / "b", tree]) == ["10.png", "2.png", "notes.txt", "a.png", "c.d/x"]


def test_equal_names_of_two_folders_become_whole_paths(tree, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(b"other")
    (other / "z.png").write_bytes(b"z")
    listed = names([tree, other])
    assert listed == [
        f"{tree.as_posix()}/a.png", "b/10.png", "b/2.png", "b/notes.txt", "c.d/x", f"{other.as_posix()}/a.png", "z.png",
    ]  # fmt: skip
    assert len(set(listed)) == len(listed)


def test_links_that_lead_back_up_end(tree):
    (tree / "b" / "up").symlink_to(tree, target_is_directory=True)
    assert names([tree]) == ["a.png", "b/10.png", "b/2.png", "b/notes.txt", "c.d/x"]


def test_nothing_to_read_is_an_error(tree, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for inputs, sentence in [
        ([empty], "The folder .*empty holds no files"),
        ([tree, tmp_path / "no"], "There is no file or folder .*no"),
        ([], "No image was given"),
    ]:
        with pytest.raises(UserError, match=sentence):
            list_images(inputs)
