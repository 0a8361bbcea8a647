"""The table of GEMM choices: complete for the published sizes, and every row says where it comes from."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from carzero.kernels import table
from carzero.ops import DecoderSpec

DEVICES = ("sm_80", "sm_90", "sm_100")
MASKED = ("norm", "affine", "branch")


def products(spec: DecoderSpec) -> set[tuple[str, int, int]]:
    """Role, K and N of every GEMM over pairs that the published decoder needs, forward and backward."""
    d, f = spec.width, spec.ffn
    needed = {("norm", d, d), ("norm", d, f), ("branch", d, d), ("branch", f, d)}
    needed |= {("pull", d, d), ("pull", f, d), ("pull_gated", d, f)}
    needed |= {("outer", d, d), ("outer", f, d), ("outer", d, f)}
    widths = spec.head_widths()[:-1]
    for index, (i, o) in enumerate(itertools.pairwise(widths)):
        needed |= {("affine", i, o), ("outer", o, i), ("pull_gated" if index else "pull", o, i)}
    return needed


def test_every_published_shape_has_its_own_row_on_every_device() -> None:
    known = {(row.device, row.role, row.k, row.n, row.dropout) for row in table.rows() if row.bits == 16}
    for device in DEVICES:
        for role, k, n in products(DecoderSpec()):
            for dropout in (False, True) if role in MASKED else (False,):
                assert (device, role, k, n, dropout) in known


def test_any_other_shape_falls_back_to_a_row_of_its_role() -> None:
    for device, bits, role in itertools.product(("interpreter", *DEVICES), (16, 32), table.ROLES):
        for dropout in (False, True) if role in MASKED else (False,):
            choice = table.lookup(role, device, bits, 24, 40, dropout)
            assert "anyxany" in choice.reason


def test_rows_are_what_the_kernels_can_do() -> None:
    keys = [(r.device, r.bits, r.role, r.k, r.n, r.dropout) for r in table.rows()]
    assert len(set(keys)) == len(keys)
    for row in table.rows():
        assert row.by in ("triton", "cublas")
        assert row.role in table.ROLES
        assert all(side >= 16 and side & (side - 1) == 0 for side in row.block)
        measured = r"[0-9a-f]{8}, .*: triton [\d.e-]+ s, cublas [\d.e-]+ s"
        assert row.device == "interpreter" or row.source == "estimate" or re.fullmatch(measured, row.source)


def test_a_shape_of_its_own_comes_before_any() -> None:
    assert "768x768" in table.lookup("norm", "sm_90", 16, 768, 768, False).reason
    assert "anyxany" in table.lookup("norm", "sm_90", 16, 768, 776, False).reason


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    table.target.cache_clear()
    for capability, name in (((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_100")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert table.target(torch.device("cuda")) == name
        table.target.cache_clear()
    assert table.target(torch.device("cpu")) == "interpreter"


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"role must be one of norm, .*, got 'inner'"):
        table.lookup("inner", "sm_90", 16, 1, 1, False)
    with pytest.raises(LookupError, match=r"table.json has no row for norm on sm_90 with 64-bit operands"):
        table.lookup("norm", "sm_90", 64, 1, 1, False)
