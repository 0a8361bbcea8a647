"""The rules engine: what sentences affirm and deny, how severe, where; labelled sentences and human codes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from carzero.errors import UserError
from carzero.prompts.lexicon import Finding, Lexicon, Pattern, default_lexicon, read_lexicon
from carzero.prompts.rules import RulesEngine
from carzero.prompts.statement import PLACES, SEVERITIES, Statement

SENTENCES = Path(__file__).with_name("negation_sentences.tsv")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def polarity(statements, finding):
    found = [s for s in statements if s.finding == finding]
    if not found:
        return "missing"
    return "absent" if found[0].negated else "uncertain" if found[0].uncertain else "present"


def test_labelled_sentences(engine):
    rows = list(csv.reader(SENTENCES.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 300
    assert len({tuple(row) for row in rows}) == 300
    assert {row[1] for row in rows} <= set(engine.lexicon.findings)
    reports = engine.pipe(row[2] for row in rows)
    read = [polarity(report.statements, row[1]) for row, report in zip(rows, reports)]
    negation = [(got == "absent") == (row[0] == "absent") and got != "missing" for row, got in zip(rows, read)]
    assert sum(negation) >= 0.97 * 300, [row for row, right in zip(rows, negation) if not right]
    assert sum(got == row[0] for row, got in zip(rows, read)) >= 0.95 * 300


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        (
            "Small left effusion is again seen, heart mildly enlarged, no pneumothorax.",
            ["There is small left pleural effusion.", "There is mild cardiomegaly.", "There is no pneumothorax."],
        ),
        ("Moderate to large bilateral pleural effusions.", ["There is moderate to large bilateral pleural effusion."]),
        ("Right greater than left effusions.", ["There is bilateral pleural effusion."]),
        ("Opacity at the left lung base.", ["There is lung opacity in the left base."]),
        ("Bibasilar atelectasis.", ["There is atelectasis in both bases."]),
        (
            "Atelectasis and scarring in the right upper lobe.",
            ["There is atelectasis in the right upper lobe.", "There is scarring in the right upper lobe."],
        ),
        ("Calcified left hilar granuloma.", ["There is calcified granuloma in the left hilum."]),
        ("There may be a tiny apical pneumothorax on the right.", ["There is possible tiny right pneumothorax."]),
        ("No large pleural effusion.", ["There is no large pleural effusion."]),
        ("Heart size is normal and the lungs are clear.", ["There is no cardiomegaly.", "There is no lung opacity."]),
        ("Air-space disease/infiltrate.", ["There is airspace disease.", "There is infiltrate."]),
        ("The effusion is small.", ["There is small pleural effusion."]),
        (
            "Low lung volume exam shows small right effusion.",
            ["There is low lung volumes.", "There is small right pleural effusion."],
        ),
        ("PNEUMOTHORAX: NONE", ["There is no pneumothorax."]),
        ("1. Cardiomegaly. 2. No effusion.", ["There is cardiomegaly.", "There is no pleural effusion."]),
        ("No effusion\nCardiomegaly", ["There is no pleural effusion.", "There is cardiomegaly."]),
        ("History of pneumonia. Evaluate for pneumothorax.", []),
        ("Cannot rule out pneumonia.", ["There is possible pneumonia."]),
        ("", []),
        ("XXXX XXXX.", []),
    ],
)  # fmt: skip
def test_aligned_sentences(engine, report, sentences):
    assert engine(report).sentences == sentences


def test_change_is_kept_beside_the_sentence(engine):
    said = {
        "New left effusion.": ("new", False),
        "Stable left effusion.": ("stable", False),
        "Left effusion has increased.": ("worse", False),
        "Decreasing left effusion.": ("better", False),
        "The left effusion has resolved.": ("resolved", True),
        "Left effusion.": (None, False),
    }
    for report, expected in said.items():
        (statement,) = engine(report).statements
        assert (statement.change, statement.negated) == expected, report
        assert statement.side == "left"


def test_spans_and_what_could_not_be_aligned(engine):
    report = "The patient is rotated.  Right-sided pleural\neffusion — no PNEUMOTHORAX."
    aligned = engine(report)
    assert [report[s.start : s.end] for s in aligned.statements] == ["pleural\neffusion", "PNEUMOTHORAX"]
    assert aligned.sentences == ["There is right pleural effusion.", "There is no pneumothorax."]
    assert aligned.unaligned == ("The patient is rotated.",)


def test_wrapped_lines_are_sentences_and_listed_lines_are_not(engine):
    wrapped = (
        " FINDINGS: Two views were obtained. There is no focal\n consolidation, effusion or pneumothorax"
        " on either of the two views, and the tip of the right\n IJ catheter is in the SVC. No\n fracture."
    )
    assert engine(wrapped).sentences == [
        "There is no consolidation.",
        "There is no pleural effusion.",
        "There is no pneumothorax.",
        "There is right catheter.",
        "There is no fracture.",
    ]
    listed = "No effusion\nCardiomegaly\nNo pneumothorax\n\nscarring"
    assert [s.negated for s in engine(listed).statements] == [True, False, True, False]
    long = "No pleural effusion is seen on this frontal radiograph of the chest today\nIMPRESSION: Cardiomegaly"
    assert [s.negated for s in engine(long).statements] == [True, False]


def test_pipe_equals_one_by_one_and_is_deterministic(engine):
    reports = [row.split("\t")[2] for row in SENTENCES.read_text(encoding="utf-8").splitlines()[:40]]
    assert list(engine.pipe(reports)) == [engine(report) for report in reports] == list(RulesEngine().pipe(reports))


def test_every_finding_is_found_by_each_of_its_names(engine):
    wrong = []
    for finding in engine.lexicon.findings.values():
        for name in (finding.name, *finding.synonyms):
            if engine.lexicon.named(name) is not finding:
                continue
            found = {s.finding for s in engine(f"There is {name}.").statements}
            denied = engine(f"There is no {name}.").statements
            if not any(engine.lexicon.is_a(f, finding.name) for f in found) or not (
                denied and all(s.negated for s in denied)
            ):
                wrong.append((finding.name, name, found, [s.aligned for s in denied]))
    assert wrong == []


def test_sentences_read_as_what_they_were_made_from(engine):
    """An aligned sentence, aligned again, is the same statement: the standard form is a fixed point."""
    for finding in ("pleural effusion", "atelectasis", "lung nodule"):
        for severity in (None, *SEVERITIES):
            for side in (None, "left", "right", "bilateral"):
                for negated, uncertain in ((False, False), (True, False), (False, True)):
                    made = Statement(finding, negated, uncertain, severity, side)
                    (read,) = engine(made.aligned).statements
                    assert read.aligned == made.aligned
    for place in PLACES:
        made = Statement("fracture", side="left", location=place)
        assert engine(made.aligned).sentences == [made.aligned]


def test_a_lexicon_of_ones_own(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("# mine\nfoo: foo(s) | bar ~ baz | !foo ~~ fine | @Big Foo\nkind [foo]: special foo\n")
    lexicon = read_lexicon(path)
    assert lexicon.named("BIG_foo").name == "foo"
    assert lexicon.named("foos").name == "foo"
    assert lexicon.is_a("kind", "foo")
    assert not lexicon.is_a("foo", "kind")
    engine = RulesEngine(lexicon)
    said = {
        "Two foos.": [("foo", False)],
        "A special foo.": [("kind", False)],
        "No bar in the baz.": [("foo", True)],
        "Foo, we say, is fine.": [("foo", True)],
        "bar and baz": [],
        "effusion": [],
    }
    for report, expected in said.items():
        assert [(s.finding, s.negated) for s in engine(report).statements] == expected, report


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "names no finding"),
        ("foo", "line 1: expected 'finding: pattern"),
        ("foo: a | ~ b", "line 1: the pattern '~ b' must begin and end with a word"),
        ("foo: a |", "must begin and end with a word"),
        ("foo: a\nfoo: b", "'foo' stands in it twice"),
        ("foo [bar]: a", "kind of 'bar', which has no line"),
        ("foo: !a", "no pattern that says it is present"),
    ],
)
def test_wrong_lexicons_get_a_sentence(tmp_path, content, sentence):
    (tmp_path / "lexicon.txt").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_lexicon(tmp_path / "lexicon.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_lexicon(tmp_path / "none.txt")


def test_names_lead_to_one_finding():
    lexicon = default_lexicon()
    assert lexicon.named("Pleural Effusion").name == "pleural effusion"
    assert lexicon.named("Pulmonary Consolidation").name == "consolidation"
    assert lexicon.named("no such thing") is None
    with pytest.raises(UserError, match="twice"):
        Lexicon([Finding("a", (Pattern("a"),)), Finding("a", (Pattern("b"),))])


@pytest.mark.data
def test_human_codes_of_open_i(shared_data, engine, monkeypatch):
    """Micro precision and recall over the 12 commonest findings against the coders of Open-i, on the held-out half."""
    import pandas as pd

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("align_openi", None)
    from align_openi import counts, half_of, micro

    from carzero.prompts.align import report_text

    reports = pd.read_csv(shared_data / "openi_reports/reports.csv", dtype=str, keep_default_na=False)
    reports = reports[reports["uid"].isin(half_of(reports["uid"].tolist(), "held-out"))]
    texts = [report_text(row, ("findings", "impression")) for row in reports.to_dict("records")]
    table = counts(list(engine.pipe(texts)), reports["mesh_major"].tolist())
    precision, recall = micro(table)
    assert len(reports) == 1978
    assert precision >= 0.90
    assert recall >= 0.80
