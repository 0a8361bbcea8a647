"""Reports say what was drawn, deny only what was not, and keep one wording per finding for the test."""

from __future__ import annotations

import re

import pytest

from carzero.data.phantom import FINDINGS, HELD_OUT_WORDINGS, WORDINGS, Finding, aligned, held_out, labels_of, planned
from carzero.data.phantom.draw import REPORT
from carzero.data.phantom.reports import NEGATIONS, NOUNS, report
from carzero.data.phantom.stream import Stream

DRAWN = 1500
# What a reader takes as the finding, denied or not.
SIGNS = {name: (name,) for name in FINDINGS} | {
    "pleural effusion": ("effusion",),
    "cardiomegaly": ("cardiomegaly", "enlargement of the heart"),
}


@pytest.fixture(scope="module")
def reports() -> list[tuple[tuple[Finding, ...], tuple[str, ...]]]:
    """The findings and reports of many phantoms, without drawing them."""
    return [(planned(i), report(planned(i), Stream(0, i, REPORT))) for i in range(DRAWN)]


def _denies(sentence: str) -> bool:
    return re.search(r"\b(no|not)\b", sentence.lower()) is not None


def _names(sentence: str) -> set[str]:
    return {name for name, signs in SIGNS.items() if any(sign in sentence.lower() for sign in signs)}


def test_every_finding_is_said_and_none_is_denied(reports):
    for findings, sentences in reports:
        said = set().union(*(_names(s) for s in sentences if not _denies(s)))
        denied = set().union(*(_names(s) for s in sentences if _denies(s)))
        present = {f.name for f in findings}
        assert said == present
        assert 1 <= len(denied) <= 3
        assert not denied & present


def test_sides_in_sentences_are_those_drawn(reports):
    mentions = 0
    for findings, sentences in reports:
        for finding in findings:
            for s in (s.lower() for s in sentences if finding.name in _names(s) and not _denies(s)):
                sides = {w for w in ("left", "right", "bilateral") if re.search(rf"\b{w}\b", s)}
                sides |= {"bilateral"} if "both sides" in s else set()
                assert sides <= {finding.side}
                mentions += len(sides)
    assert mentions > 500


def test_normal_remarks_only_where_true(reports):
    normal = [s for f, s in reports if not f]
    assert 0.2 < len(normal) / DRAWN < 0.3
    assert all(any(re.search("clear|No acute|Normal", x) for x in s) for s in normal)
    for findings, sentences in reports:
        if {f.name for f in findings} - {"cardiomegaly", "pacemaker"}:
            assert not any("clear" in s or "acute" in s.lower() for s in sentences)
        if "cardiomegaly" in {f.name for f in findings}:
            assert not any("heart size is normal" in s or "not enlarged" in s for s in sentences)


def test_canonical_sentences():
    assert aligned(Finding("pleural effusion", "left", "small")) == "There is small left pleural effusion."
    assert aligned(Finding("edema", None, "severe")) == "There is severe edema."
    assert aligned(Finding("pacemaker", "right", None)) == "There is right pacemaker."


def test_sentences_are_clean(reports):
    for _, sentences in reports:
        for s in sentences:
            assert re.fullmatch(r"[A-Z][a-z ]*[a-z]\.", s), s
            assert "  " not in s
        assert len(set(sentences)) == len(sentences)


def test_order_is_random(reports):
    first = [bool(_names(s[0])) and not _denies(s[0]) for f, s in reports if f]
    assert 0.3 < sum(first) / len(first) < 0.8


def test_bare_prompts_occur(reports):
    text = {s for _, sentences in reports for s in sentences}
    for name in FINDINGS:
        assert any(f"There is {noun}." in text for noun in NOUNS[name]), name


def test_held_out_wording_is_new_but_its_words_are_known(reports):
    sentences = {s.lower() for _, all_of in reports for s in all_of}
    words = {w for s in sentences for w in re.findall(r"\w+", s)}
    # Words of sentences that say something: a word known from denials alone would carry a "no".
    affirmed = {w for s in sentences if not _denies(s) for w in re.findall(r"\w+", s)}
    assert words >= affirmed
    for name, kind in FINDINGS.items():
        assert HELD_OUT_WORDINGS[name] not in (*WORDINGS[name], *NEGATIONS)
        for side in ("left", "right") if kind.sided else (None,):
            asked = held_out(name, side)
            assert asked.lower() not in sentences
            assert set(re.findall(r"\w+", asked.lower())) <= affirmed, asked
            assert name in _names(asked)


def test_labels_know_every_name(reports):
    for findings, _ in reports[:50]:
        labels = labels_of(findings)
        assert [n for n in FINDINGS if labels[n]] == [n for n in FINDINGS if n in {f.name for f in findings}]
