"""What a report says: one sentence per finding, some findings denied, a normal remark.

Every finding has a list of wordings for training and one that training never uses. The held-out one consists of words
that training knows, so a model that reads words, not sentences, can be asked with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from carzero.data.phantom.findings import FINDINGS, Finding
from carzero.data.phantom.stream import Stream

SIDED = (
    "there is {severity} {side} {noun}",
    "{severity} {side} {noun} is present",
    "{severity} {noun} {where}",
    "{severity} {noun} is seen {where}",
)
UNSIDED = ("there is {severity} {noun}", "{severity} {noun} is present", "{severity} {noun} is seen")
HELD_OUT_SIDED = "{noun} is present {where}"

# What the findings are called; the first name is the canonical one.
NOUNS: dict[str, tuple[str, ...]] = {
    "pleural effusion": ("pleural effusion", "effusion"),
    "edema": ("edema", "pulmonary edema"),
    **{name: (name,) for name in FINDINGS if name not in ("pleural effusion", "edema")},
}
WORDINGS: dict[str, tuple[str, ...]] = {
    "pleural effusion": (*SIDED, "{severity} {side} pleural effusion with a blunted costophrenic angle"),
    "pneumothorax": (*SIDED, "{severity} {side} pneumothorax with a visible pleural line"),
    "consolidation": (*SIDED, "{severity} consolidation in the {side} lung"),
    "nodule": (*SIDED, "{severity} nodule in the {side} lung"),
    "cardiomegaly": (
        *UNSIDED,
        "the heart is enlarged with {severity} cardiomegaly",
        "{severity} enlargement of the heart",
    ),
    "atelectasis": (*SIDED, "{severity} atelectasis at the {side} base"),
    "edema": (*UNSIDED, "{severity} interstitial edema in both lungs"),
    "pacemaker": (*SIDED, "pacemaker with leads over the {side} chest"),
}
HELD_OUT_WORDINGS: dict[str, str] = {
    **dict.fromkeys(FINDINGS, HELD_OUT_SIDED),
    "cardiomegaly": "enlargement of the heart is present",
    "edema": "interstitial edema is present",
}
NEGATIONS = ("there is no {noun}", "no {noun} is seen", "no evidence of {noun}", "no {noun}")
ALL_NORMAL = (
    "no acute abnormality",
    "the lungs are clear",
    "normal chest radiograph",
    "no acute cardiopulmonary process",
)
HEART_NORMAL = ("the heart size is normal", "the heart is not enlarged")
LUNGS_NORMAL = ("the lungs are clear",)
IN_LUNGS = ("consolidation", "nodule", "atelectasis", "edema", "pneumothorax", "pleural effusion")


def sentence(wording: str, noun: str, side: str | None = None, severity: str | None = None) -> str:
    """The wording with its blanks filled; what is None is left out."""
    where = {None: "", "bilateral": "on both sides"}.get(side, f"on the {side}")
    filled = wording.format(noun=noun, side=side or "", severity=severity or "", where=where)
    text = " ".join(filled.split())
    return text[0].upper() + text[1:] + "."


def aligned(finding: Finding) -> str:
    """The canonical sentence: `There is <severity> <side> <finding>.`"""
    return sentence(SIDED[0], finding.name, finding.side, finding.severity)


def held_out(name: str, side: str | None = None) -> str:
    """The sentence for this finding that no training report holds."""
    return sentence(HELD_OUT_WORDINGS[name], NOUNS[name][-1], side)


def positive(finding: Finding, stream: Stream) -> str:
    """One sentence that says the finding, in a random wording; now and then without its severity or its side."""
    wording = stream.pick(WORDINGS[finding.name])
    severity = finding.severity if stream.chance(0.7) else None
    # "In the lung" and the like need their side.
    free = wording in SIDED and stream.chance(0.2)
    return sentence(wording, stream.pick(NOUNS[finding.name]), None if free else finding.side, severity)


def negative(name: str, stream: Stream) -> str:
    """One sentence that denies the finding."""
    return sentence(stream.pick(NEGATIONS), stream.pick(NOUNS[name]))


def report(findings: Sequence[Finding], stream: Stream) -> tuple[str, ...]:
    """A report: every finding said, one to three absent ones denied, sometimes a normal remark; in random order."""
    present = [f.name for f in findings]
    absent = [name for name in FINDINGS if name not in present]
    sentences = [positive(f, stream) for f in findings]
    sentences += [negative(name, stream) for name in stream.sample(absent, stream.pick((1, 1, 2, 3)))]
    if not present:
        sentences.append(sentence(stream.pick(ALL_NORMAL), ""))
    elif "cardiomegaly" in present and not any(n in IN_LUNGS for n in present):
        sentences.append(sentence(stream.pick(LUNGS_NORMAL), ""))
    elif "cardiomegaly" not in present and stream.chance(0.3):
        sentences.append(sentence(stream.pick(HEART_NORMAL), ""))
    return tuple(dict.fromkeys(stream.sample(sentences, len(sentences))))
