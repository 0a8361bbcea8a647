"""What the mask blots out, and what it leaves."""

from __future__ import annotations

import pytest

from carzero.prompts.mask import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Compared to 03/14/2019 and 2019-03-14.", "Compared to XX/XX/XXXX and XXXX-XX-XX."),
        ("On March 14, 2019 and 14 Mar 2019", "On XXXXX XX, XXXX and XX XXX XXXX"),
        ("since March 2019, at 10:45 AM", "since XXXXX XXXX, at XX:XX XX"),
        ("Dr. John Smith was called.", "Dr. XXXX XXXXX was called."),
        ("Dictated by: Mary Jones, MD", "Dictated by: XXXX XXXXX, XX"),
        ("Read by Mary Q. Jones, M.D.", "Read by XXXX X. XXXXX, M.D."),
        ("MRN: 0012345, accession # A-1234", "MRN: XXXXXXX, accession # X-XXXX"),
        ("call (317) 555-0199 or a.b@c.org", "call (XXX) XXX-XXXX or X.X@X.XXX"),
        ("case 12345678 and ABC123456", "case XXXXXXXX and XXXXXXXXX"),
        # measures, levels, views and findings stay
        ("1.5 cm nodule, T12, 2 views, L2-L3, 40 mm", "1.5 cm nodule, T12, 2 views, L2-L3, 40 mm"),
        ("Effusion may be small. Swan Ganz catheter.", "Effusion may be small. Swan Ganz catheter."),
        ("", ""),
    ],
)
def test_masks(text, masked):
    assert mask(text) == masked
    assert len(mask(text)) == len(text)


def test_a_documented_limit():
    """Forms are caught, not meaning: a bare surname passes."""
    assert mask("Findings were told to Smith at bedside.") == "Findings were told to Smith at bedside."
