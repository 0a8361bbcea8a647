"""What the words around a wording say of it: denied, uncertain, how severe, where, changed how."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from carzero.prompts import cues
from carzero.prompts.statement import Statement

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span

ABSENT, GAPPED = "absent", "gapped"
_HEART = {"heart", "atrial", "atrium", "ventricle", "ventricular"}
_JOINS = {"and", "or", "nor", ",", "with", "as", "well", "&", "associated", "adjacent", "overlying", "underlying"}


class Found(NamedTuple):
    """A wording of the lexicon in the text, as tokens."""

    label: str
    start: int
    end: int

    @property
    def name(self) -> str:
        return self.label.split("|")[0]

    @property
    def absent(self) -> bool:
        return self.label.endswith((ABSENT, f"{ABSENT} {GAPPED}"))

    @property
    def gapped(self) -> bool:
        return self.label.endswith(GAPPED)


class Mention:
    """One wording in its sentence, and what the words around say of it."""

    def __init__(
        self,
        doc: Doc,
        words: list[str],
        sentence: Span,
        span: Found,
        others: list[Found],
        marks: dict[str, list[tuple[int, int]]],
    ) -> None:
        self.doc, self.words, self.sentence, self.span, self.others = doc, words, sentence, span, others
        self.marks = marks
        self.name, self.absent = span.name, span.absent

    def statement(self) -> Statement | None:
        """None where the words are not about this image."""
        a, b = self.span.start, self.span.end
        if self._of_another_image():
            return None
        negated, resolved = self._negation()
        uncertain = not negated and self._uncertain()
        left, right = self._window()
        around = list(range(left, a)) + list(range(a, b)) + list(range(b, right))
        severity = self._value("severity", left, min(right, b + 8) if self.absent else self._next(b, right))
        place = None if self.name in cues.PLACELESS else self._value("place", left, right)
        side = self._side(around)
        change = "resolved" if resolved else self._value("change", max(left - 3, self.sentence.start), right)
        if place == "lung" and side is None:
            place = None
        if self.absent:
            if "otherwise" in self.words[max(a - 1, 0) : b + 1]:
                # "otherwise clear" follows something that is not
                return None
            # a cue before "heart size is normal" is another finding's; "left lung is clear" keeps its side
            severity = place = change = None
            side = next((w for w in self.words[max(a - 1, self.sentence.start) : a] if w in ("left", "right")), None)
            negated, uncertain = True, False
        chars = self.doc[a:b]
        return Statement(self.name, negated, uncertain, severity, side, place, change, chars.start_char, chars.end_char)

    def _of_another_image(self) -> bool:
        """Whether the words name a history, a question or a reason for the examination."""
        a = self.span.start
        doubts = self.marks.get("doubt before", [])
        return any(
            end <= a <= end + 3 and not any(s <= start and end <= e for s, e in doubts) and not self._broken(end, a)
            for start, end in self.marks.get("elsewhere", [])
        )

    def _negation(self) -> tuple[bool, bool]:
        """Whether it is denied, and whether because it went away."""
        a, b = self.span.start, self.span.end
        for start, end in self.marks.get("before", []):
            if end <= a and not self._broken(end, a):
                text = " ".join(self.words[start:end])
                return True, any(word in text for word in cues.RESOLVED)
        if self.absent:
            return False, False
        for start, end in self.marks.get("after", []):
            if start >= b and not self._parted(b, start):
                text = " ".join(self.words[start:end])
                return True, any(word in text for word in cues.RESOLVED)
        return False, False

    def _broken(self, end: int, at: int) -> bool:
        """Whether a new statement begins between a cue's end and a finding."""
        if any(end <= start < at for start, _ in self.marks.get("end", [])):
            return True
        verb = False
        for k in range(end, at):
            word = self.words[k]
            if word in (":", "(") or word in cues.BEHIND:
                return True
            if word in cues.VERBS:
                verb = True
            if word in ("and", ",", "with") and k + 1 < len(self.words):
                following = self.words[k + 1]
                if following in ("and", "or", "nor") and word == ",":
                    continue
                if verb and word != "with" and not self._list_goes_on(k, at):
                    return True
                if following in cues.OPENERS and not self._list_goes_on(k, at):
                    return True
            if word == "there" and self.words[k + 1] in cues.VERBS:
                return True
        return False

    def _list_goes_on(self, k: int, at: int) -> bool:
        """Whether "or" still comes, as in "no effusion, left mass, or edema"."""
        rest = self.words[k + 1 : self.sentence.end]
        for n, word in enumerate(rest):
            if word in cues.VERBS or word in (";", "but", ":"):
                break
            if word in ("or", "nor"):
                return True
            if word == "and" and k + 1 + n > at:
                break
        return False

    def _parted(self, end: int, start: int) -> bool:
        """Whether a statement of its own lies between a finding and a cue after it."""
        if any(end <= s < start for s, _ in self.marks.get("end", [])):
            return True
        between = self.words[end:start]
        if "with" in between or "without" in between:
            return True
        verbs = [word for word in between if word in cues.VERBS]
        return (len(verbs) > 0 and "," in between) or len(verbs) > 1 or start - end > 12

    def _uncertain(self) -> bool:
        a, b = self.span.start, self.span.end
        before = (
            end <= a and a - end <= 12 and not self._broken(end, a) for _, end in self.marks.get("doubt before", [])
        )
        after = (start >= b and not self._parted(b, start) for start, _ in self.marks.get("doubt after", []))
        inside = (start >= a and end <= b for start, end in self.marks.get("doubt before", []))
        return any(before) or any(after) or any(inside)

    def _window(self) -> tuple[int, int]:
        """From where to where words belong to this mention: its neighbours bound it, "and"-joined ones after do not."""
        a, b = self.span.start, self.span.end
        before = [s for s in self.others if s.end <= a]
        left = max([s.end for s in before] + [self.sentence.start])
        left = max([left] + [end for _, end in self.marks.get("before", []) if end <= a])
        for k in range(a - 1, left - 1, -1):
            if self.words[k] in (";", ":", ",") and not (self.words[k] == "," and k + 2 == a):
                left = k + 1
                break
        right = self.sentence.end
        for s in sorted((s for s in self.others if s.start >= b), key=lambda s: s.start):
            between = self.words[b : s.start]
            if all(word in _JOINS for word in between):
                b = max(b, s.end)
                continue
            shown = [k for k in range(b, s.start) if self.words[k] in cues.SHOWING]
            joints = [k for k in range(b, s.start) if self.words[k] in _JOINS]
            right = shown[0] if shown else joints[-1] if joints else s.start
            break
        stops = [s for s, _ in self.marks.get("end", []) if s >= b] + [
            s for s, _ in self.marks.get("before", []) if s >= b
        ]
        return left, min([right, *stops])

    def _next(self, b: int, right: int) -> int:
        """Severity after a finding counts only behind a verb: "effusion is small"."""
        verbs = [k for k in range(b, right) if self.words[k] in cues.VERBS]
        return min(right, verbs[0] + 3) if verbs and verbs[0] - b <= 4 else b

    def _value(self, kind: str, left: int, right: int) -> str | None:
        """The value whose cue is nearest to the mention, the longest of several at one place."""
        a, b = self.span.start, self.span.end
        found = [
            (max(a - end, start - b, 0), start - end, value)
            for value, places in ((k.split(":", 1)[1], v) for k, v in self.marks.items() if k.startswith(f"{kind}:"))
            for start, end in places
            if start >= left
            and end <= right
            and self.words[end : end + 1] != ["displaced"]
            # "lung" of "lung nodule" is no place
            and (self.span.gapped or end <= a or start >= b)
        ]
        return min(found)[2] if found else None

    def _side(self, around: list[int]) -> str | None:
        if not around:
            return None
        found = {
            side: [(s, e) for s, e in self.marks.get(f"side:{side}", []) if s >= around[0] and e <= around[-1] + 1]
            for side in cues.SIDE
        }
        # "right atrial", "right heart": not the side of a finding
        for side in ("left", "right"):
            found[side] = [(s, e) for s, e in found[side] if not set(self.words[e : e + 1]) & _HEART]
        if found["bilateral"] or (found["left"] and found["right"]):
            return "bilateral"
        return next((side for side in ("left", "right") if found[side]), None)
