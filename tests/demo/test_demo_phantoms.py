"""What the demo says of its drawings is true of them, and what it holds back is held back."""

from __future__ import annotations

import pytest

from carzero.data.phantom import FINDINGS
from carzero.demo import phantoms
from carzero.models.text import clean_text


@pytest.fixture(scope="module")
def sets():
    train, test = phantoms.plan(150, 60, seed=3, size=32)
    return list(train), list(test)


def test_every_sentence_is_said_of_all_drawings_that_it_is_true_of(sets):
    """A sentence must mean the same labels wherever it is said, or a batch would teach a truth as false."""
    told = [(p.labels, frozenset(phantoms.statements(p))) for p in sets[0]]
    for key, prompt in {**phantoms.finding_prompts(), **phantoms.pair_prompts()}.items():
        canonical = f"{prompt}."
        for labels, said in told:
            assert (canonical in said) == bool(labels[key]), (canonical, labels)
    for name, prompt in phantoms.negated_prompts().items():
        for labels, said in told:
            assert (f"{prompt}." in said) != bool(labels[name])


def test_unseen_pairs_are_neither_shown_nor_said_in_training_but_asked_in_the_test(sets):
    train, test = sets
    said = [s.lower() for p in train for s in phantoms.statements(p)]
    for name, side in phantoms.UNSEEN_PAIRS:
        assert not any(p.labels[name, side] for p in train)
        assert not any(name in s and side in s for s in said)
        assert any(p.labels[name, side] for p in test)
        # each word is known: the finding on its other side, the side with other findings
        assert any(p.labels[name] for p in train)
        assert any(side in s for s in said)


def test_unseen_wordings_are_new_sentences_of_known_words(sets):
    said = {clean_text(s) for p in sets[0] for s in phantoms.statements(p)}
    words = {w for s in said for w in s.split()}
    prompts = phantoms.reworded_prompts()
    assert set(prompts).isdisjoint(phantoms.UNSEEN_PAIRS)
    for prompt in map(clean_text, prompts.values()):
        assert prompt not in said
        assert set(prompt.split()) <= words, prompt


def test_prompts_cover_all_findings_and_sides():
    assert list(phantoms.finding_prompts()) == list(phantoms.negated_prompts()) == list(FINDINGS)
    assert len(phantoms.pair_prompts()) == 2 * sum(kind.sided for kind in FINDINGS.values())
    assert phantoms.pair_prompts()["nodule", "left"] == "There is left nodule"
    assert phantoms.negated_prompts()["edema"] == "There is no edema"


def test_drawing_on_several_processes_changes_nothing():
    train, _ = phantoms.plan(70, 1, seed=1, size=32)
    alone, shared = phantoms.draw_all(train, processes=1), phantoms.draw_all(train, processes=2)
    counted = []
    phantoms.draw_all(train, processes=1, progress=counted.append)
    assert counted == list(range(1, 71))
    assert [p.index for p in alone] == [p.index for p in shared]
    assert all((a.image == b.image).all() and a.findings == b.findings for a, b in zip(alone, shared))


def test_label_matrix_takes_findings_and_pairs(sets):
    some = sets[1][:5]
    matrix = phantoms.label_matrix(some, ["nodule", ("nodule", "left")])
    assert matrix.tolist() == [[bool(p.labels["nodule"]), bool(p.labels["nodule", "left"])] for p in some]
    assert phantoms.label_matrix([], ["nodule"]).shape == (0, 1)
