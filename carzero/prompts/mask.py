"""Dates, names and identifiers blotted out of a report before it leaves the machine."""

from __future__ import annotations

import re

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_NAME = r"[A-Z][A-Za-z'’-]+"
# longer and more telling ones first; the group "keep" stays
_PATTERNS = [
    re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    re.compile(r"\b\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}\b"),
    re.compile(rf"(?i)\b{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?\b"),
    re.compile(rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH}\.?(?:,?\s+\d{{4}})?\b"),
    re.compile(rf"(?i)\b{_MONTH}\.?,?\s+(?:19|20)\d\d\b"),
    re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[AaPp]\.?[Mm]\b\.?)?"),
    re.compile(r"(?<!\w)\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"),
    re.compile(
        r"(?P<keep>(?i:\b(?:mrn|medical record(?: number)?|accession(?: number)?|patient id|exam(?:ination)? id|ssn|"
        r"dob|account)\b\s*(?:no\.?|number|#)?\s*[:#]?\s*))(?=[\w/-]*\d)[\w/-]+"
    ),
    re.compile(r"\b(?=\w*\d)[A-Z0-9]*\d[A-Z0-9-]{5,}\b"),
    re.compile(
        rf"(?P<keep>\b(?:Dr|Drs|Doctor|Mr|Mrs|Ms|Miss|Prof|Professor)\b\.?\s+){_NAME}(?:\s+(?:[A-Z]\.\s*)?{_NAME})?"
    ),
    re.compile(
        rf"(?P<keep>(?i:\b(?:patient(?: name)?|name|dictated by|signed by|read by|interpreted by|attending|resident|"
        rf"referring physician|radiologist)\s*:\s*)){_NAME}(?:,?\s+(?:[A-Z]\.?\s+)?{_NAME})*"
    ),
    re.compile(rf"\b{_NAME}(?:\s+[A-Z]\.)?\s+{_NAME}(?=,?\s+(?:M\.?D\.?|D\.?O\.?|R\.?N\.?|Ph\.?D\.?)(?!\w))"),
]


def mask(text: str) -> str:
    """The text with dates, times, names after a title or a label, telephone numbers, addresses and numbers as X.

    The length stays, so that places in the text mean the same before and after. It catches forms, not meaning: a bare
    surname, a place, an age or a misspelt month passes. It is no de-identification in the sense of any law.
    """
    for pattern in _PATTERNS:
        text = pattern.sub(_blot, text)
    return text


def _blot(match: re.Match[str]) -> str:
    kept = match.groupdict().get("keep") or ""
    return kept + re.sub(r"\w", "X", match[0][len(kept) :])
