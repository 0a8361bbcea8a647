"""The README is run as it is read: Python blocks, console commands, and what they print.

A ``python`` block is followed by a ``text`` block with what it printed; in a ``console`` block the lines after
``$ command`` are its output, where ``...`` stands for anything. They run from top to bottom in one folder that holds
what `make demo` leaves behind, drawn and trained small.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def differs(wanted: str, got: str) -> str | None:
    """None where the output is the wanted one, else both."""
    if doctest.OutputChecker().check_output(wanted.strip() + "\n", got.strip() + "\n", FLAGS):
        return None
    return f"wanted:\n{wanted}\ngot:\n{got}"


def run_python(example: Example) -> str | None:
    printed = io.StringIO()
    code = compile(example.parsed, f"README.md, line {example.line}", "exec", dont_inherit=True)
    with contextlib.redirect_stdout(printed):
        exec(code, example.namespace)
    example.namespace["printed"] = printed.getvalue()
    return None


def compare_text(example: Example) -> str | None:
    return differs(example.parsed, example.namespace.pop("printed"))


def run_console(example: Example) -> str | None:
    for block in re.split(r"^\$ ", example.parsed, flags=re.M)[1:]:
        command, _, wanted = block.partition("\n")
        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
        )
        difference = differs(wanted, done.stdout)
        if done.returncode or difference:
            return f"$ {command}\nexit code {done.returncode}\n{difference or done.stdout}"
    return None


def write_demo(folder: Path) -> None:
    """What `make demo` leaves, with an untrained model: demo/model and demo/images."""
    import torch

    from carzero import CARZero, CARZeroConfig
    from carzero.data.phantom import split, write_dataset
    from carzero.models.tokenizer import word_tokenizer

    _, test = split(0, 3)
    manifest, _ = write_dataset(folder / "demo", test, split="test")
    tokenizer = word_tokenizer([manifest.read_text(encoding="utf-8")])
    torch.manual_seed(0)
    CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer).save_pretrained(folder / "demo" / "model")


SYBIL = Sybil(
    parsers=[
        CodeBlockParser(language="python", evaluator=run_python),
        CodeBlockParser(language="text", evaluator=compare_text),
        CodeBlockParser(language="console", evaluator=run_console),
    ]
)


@pytest.fixture
def demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the README's reader."""
    write_demo(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_readme_blocks(demo_folder: Path) -> None:
    document = SYBIL.parse(README)
    namespace: dict[str, Any] = document.namespace
    examples = list(document.examples())
    languages = {type(e.region).__name__ for e in examples}
    assert len(examples) >= 4, languages
    for example in examples:
        example.evaluate()
    assert "printed" not in namespace, "the last python block has no text block with its output"


def test_readme_is_short_and_complete() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert "not a medical device" in " ".join(lines)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text())
    assert pictures
    missing = [p for p in pictures if not (ROOT / p).is_file()]
    assert missing == []


def test_links_lead_somewhere() -> None:
    documents = [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = []
    for document in documents:
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^ +|=1 )make ([a-z-]+)", README.read_text(), re.M))
    assert {"demo", "test"} <= named
    assert {t for t in named if not re.search(rf"^{t}:", makefile, re.M)} == set()
