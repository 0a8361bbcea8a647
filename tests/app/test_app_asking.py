"""Lines become prompts, prompts become lines, and what cannot be asked is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carzero.app.asking import (
    MOST,
    TITLES,
    benchmark_choices,
    benchmark_findings,
    denial,
    read_findings,
    write_findings,
)
from carzero.errors import UserError
from carzero.prompts import BENCHMARKS, prompt_set


def test_lines_are_findings_unless_they_are_prompts():
    read = read_findings(
        'Edema\n\n  left   effusion \nThere are nodules\nthere is no mass\n"the heart is large"\nEdema\n'
    )
    assert dict(zip(read.classes, read.prompts)) == {
        "Edema": ("There is Edema",),
        "left effusion": ("There is left effusion",),
        "There are nodules": ("There are nodules",),
        "there is no mass": ("there is no mass",),
        "the heart is large": ("the heart is large",),
    }


def test_there_alone_does_not_open_a_prompt():
    assert read_findings("therein\nthere isnt").texts == ["There is therein", "There is there isnt"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  \n ", "at least one finding"),
        ("edema\n???", "The line '???' holds no word"),
        ("\n".join(f"f{n}" for n in range(MOST + 1)), f"At most {MOST} findings"),
        ("x" * 501, "at most 500 characters, got one of 501"),
        ("edema\nThere is edema", "ask the same: 'edema' and 'There is edema'"),
        ("image", "cannot be called 'image'"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        read_findings(text)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_come_back_as_their_own_prompts(name):
    assert read_findings(benchmark_findings(name)).texts == list(dict.fromkeys(prompt_set(name).texts))


def test_every_benchmark_is_offered_with_its_size():
    assert {name for _, name in benchmark_choices()} == set(BENCHMARKS) == set(TITLES)
    assert ("CheXpert (5 findings)", "chexpert") in benchmark_choices()


PROMPTS = ("There is a", "There is There is b", "there are c", "d", '"e"', "There is no f", "There is")


@given(st.lists(st.sampled_from(PROMPTS), unique=True, min_size=1))
def test_any_prompt_can_be_written_as_a_line(prompts):
    assert read_findings(write_findings(prompts)).texts == prompts


def test_denials():
    assert denial("There is an effusion") == "There is no effusion"
    assert denial("There are nodules") == "There are no nodules"
    assert denial("There is no effusion") is None
    assert denial("left effusion") is None
