"""The cues of negation, uncertainty, change, severity, side and place in reports."""

from __future__ import annotations


def _phrases(text: str) -> list[str]:
    """The phrases between commas."""
    return [" ".join(phrase.split()) for phrase in text.split(",")]


#: negspacy's termset: its four lists, in the language of chest reports; a cue inside a pseudo-negation is none
NEGATION = {
    "pseudo_negations": _phrases(
        """
        no change, no changes, no significant change, no interval change, no significant interval change, no definite
        change, no appreciable change, no substantial change, no further, no increase, no decrease, no improvement, no
        difference, no new change, without change, without interval change, without significant change, without
        significant interval change, without definite change, without further, not significantly changed, not
        significantly, not changed, not appreciably changed, not substantially changed, not resolved, not completely
        resolved, not cleared, not completely, not entirely, not only, not necessarily, not certain, not excluded, not
        be excluded, not exclude, not ruled out, not rule out, not be ruled out, cannot exclude, cannot be excluded,
        cannot rule out, cannot be ruled out, can not be excluded, can not exclude, no longer under, no longer enlarged,
        no longer as, partial resolution of, near complete resolution of, incomplete resolution of, partial clearing of,
        near resolution of, nearly resolved, partially resolved, nearly completely resolved, almost completely resolved,
        incompletely resolved, mostly resolved, largely resolved, partially cleared, mostly cleared, near complete
        clearing of, not well, not fully, not optimally, not included, no comparison, no prior, no previous, no priors,
        not increased, not decreased, not improved, not worsened, without improvement, no worsening, no progression, no
        doubt, not unlike, not totally, not yet resolved, not yet cleared, without resolution, no resolution, no
        interval increase, no interval decrease, not visualized on the, not as, not mild, not subtle, not small, not
        insignificant, no clearing
        """
    ),
    "preceding_negations": _phrases(
        """
        no, no evidence of, not, without, without evidence of, negative for, free of, clear of, absence of, absent, lack
        of, lacks, denies, nor, neither, never, no sign of, no signs of, rather than, instead of, non, fails to show,
        fails to demonstrate, failed to reveal, rules out, ruled out, excludes, unlikely to represent, unlikely to be,
        nothing to suggest, argues against, argue against, not suggestive of, no suspicion of, cannot see, exclusion of,
        against, doubtful, resolved, complete resolution of, interval resolution of, resolution of, interval clearing
        of, clearing of, isn't, aren't, wasn't, weren't, doesn't, don't, unremarkable for, removal of, removed
        """
    ),
    "following_negations": _phrases(
        """
        not seen, not identified, not visualized, not present, not evident, not demonstrated, not detected, not
        appreciated, not observed, not apparent, not visible, not noted, not found, is absent, are absent, absent, none,
        has resolved, have resolved, resolved, has cleared, have cleared, cleared, no longer seen, no longer visualized,
        no longer evident, no longer present, no longer identified, no longer visible, no longer appreciated, no longer
        apparent, no longer demonstrated, is excluded, are excluded, has been excluded, have been excluded, was
        excluded, were excluded, ruled out, is unlikely, are unlikely, unlikely, has disappeared, have disappeared, is
        gone, are gone, negative, has been removed, have been removed, not been seen, not been identified, not been
        demonstrated, not been detected, not been shown, not confirmed, not suspected, less likely
        """
    ),
    "termination": _phrases(
        """
        but, however, although, though, except, except for, aside from, apart from, other than, nevertheless, yet,
        still, which, with the exception of, ;, despite, while, whereas, beyond,
        otherwise, besides, in addition to, nonetheless, explained by, outside of, instead, only, just,
        superimposed on, in the setting of
        """
    ),
}

#: a cue with one of these means that the finding went away
RESOLVED = _phrases(
    """
    resolved, cleared, resolution of, clearing of, disappeared, gone, no longer, removed, removal of
    """
)

UNCERTAIN_BEFORE = _phrases(
    """
    possibility of,
    may, might, could, possible, possibly, probable, probably, likely, suggest, suggests, suggesting, suggestive of,
    suspicious for, suspicion of, suspicion for, suspected, questionable, question, question of, cannot exclude, cannot
    rule out, can not exclude, not exclude, not rule out, concern for, concerning for, worrisome for, presumably,
    presumed, consider, versus, vs, vs., perhaps, potentially, potential, differential, equivocal, favor, favored,
    apparent, represent, representing, difficult to exclude, ?, indeterminate, subtle suggestion of, raise, raises,
    raising, conceivably, seems
    """
)
UNCERTAIN_AFTER = _phrases(
    """
    should be excluded,
    cannot be excluded, can not be excluded, not be excluded, not excluded, cannot be ruled out, not be ruled out, not
    ruled out, is possible, are possible, possible, is suspected, are suspected, suspected, is questioned, is
    questionable, are questionable, is a consideration, is a possibility, in question, ?, is likely, are likely, likely,
    versus, vs, vs., is difficult to exclude, is favored, is considered, is probable, difficult to exclude, difficult to
    entirely exclude, is not certain, is uncertain, not necessarily
    """
)

#: what follows is not said of this image
NOT_OF_THE_IMAGE = _phrases(
    """
    history of, h o, hx of, evaluate for, evaluation for, evaluation of, assess for, assessment for, rule out, r o,
    indication, to exclude, to rule out, please evaluate, if there is concern for, if clinically, follow up for,
    screening for, workup for, work up for, looking for, if there is, risk of, risk for, symptoms of, treatment for,
    treated for, to assess for, to evaluate for, concern of, if there are, signs and symptoms of
    """
)

CHANGES = {
    "new": _phrases(
        """
        new, newly, interval development of, developing, developed, has developed, have developed
        """
    ),
    "worse": _phrases(
        """
        worse, worsened, worsening, increasing, progressed, progressive, progression of, interval increase in, increase
        in, has increased, have increased, larger, enlarging
        """
    ),
    "better": _phrases(
        """
        better, improved, improving, improvement in, decreased, decreasing, interval decrease in, decrease in,
        resolving, smaller, clearing, partial resolution of, regressed
        """
    ),
    "stable": _phrases(
        """
        stable, unchanged, persistent, persists, persist, again, no change in, no significant change in, no interval
        change in, no significant interval change in, without change, no change, chronic, not significantly changed,
        without significant change, without interval change, redemonstrated
        """
    ),
}

SEVERITY = {
    "borderline": _phrases("borderline, upper limits of normal"),
    "tiny": _phrases("tiny, trace, punctate, small amount of"),
    "minimal": _phrases("minimal, minimally, slight, slightly, subtle, faint"),
    "small": _phrases("small"),
    "mild": _phrases("mild, mildly"),
    "small to moderate": _phrases("small to moderate"),
    "mild to moderate": _phrases("mild to moderate, mildly to moderately"),
    "moderate": _phrases("moderate, moderately"),
    "moderate to large": _phrases("moderate to large"),
    "moderate to severe": _phrases("moderate to severe, moderate to marked"),
    "large": _phrases("large, big, massive, sizable"),
    "severe": _phrases("severe, severely, marked, markedly, extensive, gross, significant, significantly"),
}

SIDE = {
    "left": _phrases("left, left sided, lt, leftward"),
    "right": _phrases("right, right sided, rt, rightward"),
    "bilateral": _phrases(
        """
        bilateral, bilaterally, both, bibasilar, bibasal, biapical, right and left, left and right, right greater than
        left, left greater than right, bihilar, right worse than left, left worse than right, both sides
        """
    ),
}

PLACE = {
    "base": _phrases("base, bases, basilar, basal, bibasilar, bibasal, lung base, lung bases"),
    "apex": _phrases("apex, apices, apical, biapical, lung apex, lung apices"),
    "upper lobe": _phrases("upper lobe, upper lobes"),
    "middle lobe": _phrases("middle lobe"),
    "lower lobe": _phrases("lower lobe, lower lobes"),
    "lingula": _phrases("lingula, lingular"),
    "upper lung": _phrases("upper lung, upper lungs, upper zone, upper lung zone, upper lung zones"),
    "mid lung": _phrases("mid lung, midlung, mid lungs, mid zone, mid lung zone, midlung zone, middle lung"),
    "lower lung": _phrases("lower lung, lower lungs, lower zone, lower lung zone, lower lung zones"),
    "lung": _phrases("lung, lungs"),
    "perihilar region": _phrases("perihilar, suprahilar, infrahilar, parahilar"),
    "hilum": _phrases("hilum, hila, hilar"),
    "retrocardiac region": _phrases("retrocardiac"),
    "costophrenic angle": _phrases("costophrenic angle, costophrenic sulcus, costophrenic angles, costophrenic"),
    "paratracheal region": _phrases("paratracheal"),
    "thoracic spine": _phrases("thoracic spine, t spine, dorsal spine, midthoracic spine"),
    "lumbar spine": _phrases("lumbar spine"),
    "cervical spine": _phrases("cervical spine"),
    "thoracolumbar spine": _phrases("thoracolumbar spine"),
    "ribs": _phrases("rib, ribs"),
    "clavicle": _phrases("clavicle, clavicles"),
    "shoulder": _phrases("shoulder, shoulders"),
    "humerus": _phrases("humerus, humeral"),
    "mediastinum": _phrases("mediastinum, mediastinal"),
}

#: findings of one place: naming it again says nothing ("cardiomegaly in the mediastinum")
PLACELESS = frozenset(
    _phrases(
        """
    acute bone abnormality, acute cardiopulmonary abnormality, aortic atherosclerosis, cardiomegaly, chronic obstructive
    pulmonary disease, coronary calcification, costophrenic angle blunting, diaphragmatic eventration, elevated
    hemidiaphragm, flattened diaphragm, heart failure, hernia, hyperinflation, kyphosis, low lung volumes, mediastinal
    shift, mediastinal widening, pericardial effusion, pleural effusion, pneumoperitoneum, pneumothorax, prominent
    interstitial markings, pulmonary artery enlargement, scoliosis, sternotomy, tortuous aorta, vascular congestion
    """
    )
)
#: verbs that end the reach of a cue before them, unless a list goes on
VERBS = frozenset(
    _phrases(
        """
    appear, appears, are, contains, demonstrate, demonstrates, has, have, is, remain, remains, show, shows, was, were
    """
    )
)
#: verbs whose object is a finding of its own: what describes it does not describe their subject
SHOWING = frozenset({"shows", "show", "demonstrates", "demonstrate", "demonstrating", "reveals", "reveal", "showing"})
#: prepositions behind which lies another finding: "no calcification within the nodule"
BEHIND = frozenset({"within", "given"})
#: words that open a new statement after "and", "with" or a comma
OPENERS = frozenset(
    _phrases(
        """
    a, again, aorta, bibasilar, bilateral, borderline, calcified, cardiac, chronic, degenerative, healed, heart,
    hyperexpanded, improving, increased, interval, it, left, low, lung, lungs, mediastinum, mild, mildly, minimal,
    moderate, multiple, new, normal, patchy, persistent, postoperative, prominent, redemonstrated, right, scattered,
    small, stable, status, streaky, subtle, the, there, these, they, this, tortuous, unchanged, unremarkable, worsening
    """
    )
)

#: no gap of a wording holds these: they open another statement, or end one
GAP_STOPS = frozenset(
    {
        *_phrases("no, not, without, but, however, although, which, nor, normal, negative, there"),
        *".;:()!?",
        "\n",
        "\n\n",
    }
)
#: nor does a gap that is not said to run through a list
LIST_STOPS = frozenset({"and", "or", ",", "with", "versus"})
#: what speaks against the normality of what stands before it
NORMAL_STOPS = frozenset(
    _phrases(
        """
        enlarged, large, prominent, increased, borderline, upper, tortuous, calcified, elevated, abnormal, cardiomegaly,
        mildly, with, top, ectatic, effusion, widened, tortuosity, opacity, atelectasis, low, mild
        """
    )
)
