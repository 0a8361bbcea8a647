"""The benchmarks' prompts are the published ones, and others are made from them."""

from __future__ import annotations

import json

import pytest

from carzero.errors import UserError
from carzero.models.text import clean_text
from carzero.prompts import BENCHMARKS, PromptSet, prompt_set

SIZES = {"openi": 18, "chestxray14": 14, "chestxdet10": 10, "chexpert": 5, "padchest": 189}


def test_sizes_and_wording():
    assert {name: len(prompt_set(name)) for name in BENCHMARKS} == SIZES
    for name in BENCHMARKS:
        texts = prompt_set(name).texts
        assert len({text.lower() for text in texts}) == len(texts)
        # the published cleaning loses nothing of them
        assert [clean_text(t, "published") for t in texts] == [clean_text(t) for t in texts]
    assert prompt_set("openi").prompts[2] == ("There is Pleural Effusion",)
    assert prompt_set("padchest").prompts[prompt_set("padchest").classes.index("bullas")] == ("There is bullae",)


@pytest.mark.data
def test_they_are_the_published_files(shared_data):
    files = {
        "openi": "openi/openi_multi_label_text.json",
        "chestxray14": "chestxray14/chestxray14_test_text.json",
        "chestxdet10": "chestxdet10/chestXDet10_test_text.json",
    }
    for name, file in files.items():
        published = json.loads((shared_data / "eval_labels" / file).read_text())
        assert [list(texts) for texts in prompt_set(name).prompts] == [published[str(k)] for k in range(len(published))]
    symptoms = {
        s for row in json.loads((shared_data / "eval_labels/chestxdet10/test.json").read_text()) for s in row["syms"]
    }
    assert symptoms == set(prompt_set("chestxdet10").classes)


def test_several_phrasings_and_denials():
    several = prompt_set("chexpert", templates=("There is {finding}", "{finding} is seen"))
    assert several.sizes == [2] * 5
    assert several.prompts[3] == ("There is Pulmonary Edema", "Pulmonary Edema is seen")
    assert prompt_set("chexpert").negated().texts[3] == "There is no Pulmonary Edema"
    denied = PromptSet.of({"a": ["there are nodules", "There is a  mass"]}).negated()
    assert denied.prompts == (("there are no nodules", "There is no  mass"),)
    for prompt in ("mass", "There is no mass", "There isn't"):
        with pytest.raises(UserError, match="has no known negative"):
            PromptSet.of([prompt]).negated()


def test_wrong_names_and_templates_get_a_sentence():
    with pytest.raises(UserError, match=r"no benchmark 'chexpart'. Did you mean 'chexpert'\? Known: openi, "):
        prompt_set("chexpart")
    with pytest.raises(UserError, match=r"must contain \{finding\}, got 'There'"):
        prompt_set("openi", templates=("There is {finding}", "There"))
    with pytest.raises(UserError, match="class 'a' occurs more than once"):
        PromptSet.from_findings(["a", "b", "a "])
