"""The cache: what is put stays, for the same key alone; damaged files get a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from carzero.errors import UserError
from carzero.prompts.cache import AnswerCache, key_of


def test_answers_outlive_the_process_that_dies_after_them(tmp_path):
    path = tmp_path / "new" / "c.sqlite"
    code = (
        "import os, sys; from carzero.prompts.cache import AnswerCache; c = AnswerCache(sys.argv[1])\n"
        "c.put('k', {'a': [1, None, 'é']}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    cache = AnswerCache(path)
    assert cache.get("k") == {"a": [1, None, "é"]}
    assert cache.get("other") is None
    cache.put("k", {})
    assert (len(cache), cache.get("k")) == (1, {})
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_differ_where_any_part_does():
    keys = [key_of(*parts) for parts in (("a", "b"), ("ab", ""), ("", "ab"), ("a", "b", ""), ('a", "b',), ("b", "a"))]
    assert len(set(keys)) == len(keys)
    assert key_of("a", "b") == key_of("a", "b")


def test_a_file_that_is_no_cache_gets_a_sentence(tmp_path):
    (tmp_path / "c.sqlite").write_text("hello, this is no database at all" * 10)
    with pytest.raises(UserError, match=r"cannot be used: file is not a database\. Name another with --cache"):
        AnswerCache(tmp_path / "c.sqlite")
    with pytest.raises(UserError, match="cannot be used"):
        AnswerCache(tmp_path)
