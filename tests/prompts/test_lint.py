"""The linter: what it warns of, and that it leaves good prompts alone."""

from __future__ import annotations

import pytest

from carzero.models.tokenizer import word_tokenizer
from carzero.prompts import BENCHMARKS, PromptSet, prompt_set
from carzero.prompts.lexicon import default_lexicon
from carzero.prompts.lint import lint


@pytest.mark.parametrize(
    ("prompts", "warnings"),
    [
        ({"Effusion": "There is pleural effusion", "Mass": "There is a lung mass"}, []),
        ({"Effusion": "effusion"}, ["prompt 'effusion': one word; write a sentence, such as 'There is effusion'."]),
        ({"A": "There is qzxvium in the lung"}, ["unknown word qzxvium."]),
        ({"A": "There is qzxvium wobblitis 1.5"}, ["unknown words qzxvium, wobblitis."]),
        ({"A": "There is edema", "B": "there is  Edema."}, ["the class 'A' has the same prompt."]),
        (
            {"Effusion": "There is pleural effusion", "Fluid": ["There is pleural fluid", "There is fluid overload"]},
            ["says 'pleural effusion', which is what the class 'Effusion' stands for."],
        ),
        # the class that bears the name owns the finding, wherever it stands
        (
            {"Haze": "There is a pulmonary nodule", "Nodule": "There is a nodule"},
            ["class 'Haze', prompt 'There is a pulmonary nodule': says 'lung nodule'"],
        ),
    ],
)
def test_warnings(prompts, warnings):
    found = lint(PromptSet.of(prompts))
    assert len(found) == len(warnings), found
    for got, wanted in zip(found, warnings):
        assert wanted in got


def test_pieces_are_those_of_the_tokenizer():
    tokenizer = word_tokenizer(["there is mass wobblitis"])
    assert lint(PromptSet.of({"A": "There is wobblitis"}), tokenizer=tokenizer) == []
    (spelt,) = lint(PromptSet.of({"A": "There is cardiomegaly"}), tokenizer=tokenizer)
    assert "unknown word cardiomegaly" in spelt
    (cut,) = lint(PromptSet.of({"A": "There is mass " * 4}), tokenizer=tokenizer, max_pieces=10)
    assert cut.endswith("14 word pieces, of which the model reads 10.")
    assert lint(PromptSet.of({"A": "There is mass mass mass"}), tokenizer=tokenizer, max_pieces=7) == []


def test_the_published_prompts_say_each_finding_once():
    for name in ("chestxray14", "chestxdet10", "chexpert"):
        assert lint(prompt_set(name)) == []
    # OpenI has a class and its general one, each by its own name
    assert lint(prompt_set("openi")) == []


def test_the_lexicon_knows_every_finding_of_the_benchmarks():
    lexicon = default_lexicon()
    unknown = {name: [c for c in said.values() if lexicon.named(c) is None] for name, said in BENCHMARKS.items()}
    assert not any(unknown.values()), unknown
    assert not any("unknown word" in sentence for name in BENCHMARKS for sentence in lint(prompt_set(name)))
