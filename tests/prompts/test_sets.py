"""Prompt sets from mappings, lists and files; wrong ones are named with their line."""

from __future__ import annotations

import json

import pytest

from carzero.errors import UserError
from carzero.prompts.sets import PromptSet, load_prompts

EXPECTED = PromptSet(("Effusion", "Mass, large"), (("There is effusion", "Fluid, left"), ("There is a mass",)))


def test_the_three_file_kinds(tmp_path):
    (tmp_path / "p.json").write_text(
        json.dumps({"Effusion": ["There is effusion", "Fluid, left"], "Mass, large": "There is a mass"})
    )
    (tmp_path / "p.csv").write_text(
        'prompt,class\nThere is effusion,Effusion\n"There is a mass","Mass, large"\n\n"Fluid, left",Effusion\n'
    )
    (tmp_path / "p.txt").write_text("\ufeffThere is effusion\r\n\n  Fluid, left \n", encoding="utf-8")
    assert load_prompts(tmp_path / "p.json") == EXPECTED
    assert load_prompts(str(tmp_path / "p.csv")) == EXPECTED
    assert load_prompts(tmp_path / "p.txt") == PromptSet.of(["There is effusion", "Fluid, left"])


def test_columns_and_sizes_follow_the_order():
    assert EXPECTED.texts == ["There is effusion", "Fluid, left", "There is a mass"]
    assert EXPECTED.sizes == [2, 1]
    assert len(EXPECTED) == 2


def test_the_published_template_and_others():
    assert PromptSet.from_findings(["Effusion ", "Pleural Thickening"]) == PromptSet.of(
        {"Effusion": "There is Effusion", "Pleural Thickening": "There is Pleural Thickening"}
    )
    assert PromptSet.from_findings(["mass"], "A {finding} is seen, {x}").texts == ["A mass is seen, {x}"]
    with pytest.raises(UserError, match=r"must contain \{finding\}, got 'There is'"):
        PromptSet.from_findings(["a"], "There is")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.json", '{"a": "b",}', r"cannot be used: line 1, column \d+"),
        ("p.json", '["a", "b"]', "must hold an object"),
        ("p.json", '"a"', "must hold an object"),
        ("p.json", "{}", "No class was given"),
        ("p.json", '{"a": 3}', "class 'a' must have a text or a list of texts, got 3"),
        ("p.json", '{"a": ["b", null]}', "class 'a' must have a text"),
        ("p.json", '{"a": []}', "class 'a' has no prompt"),
        ("p.json", '{"a": "  "}', "class 'a' has a prompt without any word"),
        ("p.json", '{"a": "b", "a": "c"}', "class 'a' occurs more than once"),
        ("p.json", '{"image": "b"}', "cannot be called 'image'"),
        ("p.json", '{" ": "b"}', "empty name"),
        (
            "p.csv",
            "finding,prompt\na,b\n",
            "line 1: the header needs the columns class and prompt, got finding, prompt",
        ),
        ("p.csv", "class,prompt\na,b\nc,d,e\n", "line 3: 3 cells where the header has 2; a prompt with a comma"),
        ("p.csv", "class,prompt\na,b\nc,\n", "line 3: the prompt is empty"),
        ("p.csv", "class,prompt\n,b\n", "line 2: the class is empty"),
        ("p.csv", "class,prompt\n", "No class was given"),
        ("p.csv", 'class,prompt\na,"b"x\n', "line 2: "),
        ("p.txt", "There is a\nThere is b\nThere is a\n", "line 3: 'There is a' stands on line 1"),
        ("p.txt", "There is a\n---\n", "line 2: '---' holds no word"),
        ("p.txt", " \n\n", "is empty"),
        ("p.yaml", "a: b", "must end in .json, .csv, .txt"),
    ],
)
def test_wrong_files_get_a_sentence(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_unreadable_files_get_a_sentence(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d.txt").mkdir()
    for name, sentence in {"p.txt": "not UTF-8", "gone.json": "does not exist", "d.txt": "cannot be read"}.items():
        with pytest.raises(UserError, match=sentence):
            load_prompts(tmp_path / name)


def test_wrong_values_get_a_sentence():
    for prompts, sentence in [
        ("There is a", "must be a list or a mapping"),
        ([], "No class was given"),
        (["a", "b", "a"], "The prompt 'a' occurs more than once"),
        (["a", 3], "must be a text, got 3"),
        ({"a": ()}, "has no prompt"),
    ]:
        with pytest.raises(UserError, match=sentence):
            PromptSet.of(prompts)
