"""The programs of examples/ run, change as few lines as they say, and their patches apply."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
PROGRAMS = ("published_carzero", "medklip", "blip_itm", "torch_decoder", "gloria")
PATCHES = sorted((EXAMPLES / "patches").glob("*.diff"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    change = importlib.import_module(name).run(pairs=3, width=32, rounds=1)
    assert change.difference < 1e-5
    assert change.lines == changed_lines((EXAMPLES / f"{name}.py").read_text())
    assert change.lines <= 3
    assert min(change.before, change.after, change.encoders) > 0.0


def changed_lines(source: str) -> int:
    """The import that the change needs, and the body of `score_after`, or the one call of `carzero.patch`."""
    imports = len(
        re.findall(
            r"^(?:from carzero\.(?:dropin|similarities) import .*(?:pair_logits|word_region)|import carzero)$",
            source,
            re.M,
        )
    )
    assert imports == 1
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "score_after"]
    if not functions:
        return imports + len(re.findall(r"^ +carzero\.patch\(", source, re.M))
    body = functions[0].body[1:]
    return imports + sum(n.end_lineno - n.lineno + 1 for n in body)


def test_every_program_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)\.py`", (EXAMPLES.parent / "docs" / "drop-in.md").read_text()))
    assert set(PROGRAMS) <= named


@pytest.mark.parametrize("path", PATCHES, ids=lambda p: p.stem)
def test_patch_applies_where_it_says(path: Path, tmp_path: Path) -> None:
    """On a file that has the patch's context lines at the line numbers of its headers, and others between."""
    text = path.read_text()
    target = tmp_path / re.search(r"^--- a/(.+)$", text, re.M)[1]
    target.parent.mkdir(parents=True)
    lines = [f"# line {i}" for i in range(1, 301)]
    added = []
    for start, new, body in re.findall(r"^@@ -(\d+),\d+ \+(\d+),\d+ @@\n((?:[ +].*\n)+)", text, re.M):
        old = [line[1:] for line in body.splitlines() if line[0] == " "]
        lines[int(start) - 1 : int(start) - 1 + len(old)] = old
        added += [(int(new) + i, line[1:]) for i, line in enumerate(body.splitlines()) if line[0] == "+"]
    target.write_text("\n".join(lines) + "\n")
    done = subprocess.run(["git", "apply", "--verbose", str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "offset" not in done.stderr
    changed = target.read_text().splitlines()
    assert len(added) == len(changed) - 300 <= 3
    assert all(changed[number - 1] == line for number, line in added)
