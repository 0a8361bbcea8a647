"""Answers that were paid for, in a local SQLite file: an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from carzero.errors import UserError


class AnswerCache:
    """A dictionary on disk from (text, prompt, model, version) to an answer; every answer is safe once it is put.

    Args:
        path: the file, made when missing, readable by its owner alone; its keys are digests, its answers name findings.

    Raises:
        UserError: it cannot be opened, or is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            # one writer at a time waits for the other, and a killed one leaves nothing half written
            self._database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"The cache {self.path} cannot be used: {error}. Name another with --cache.") from None

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer of a key; None if there is none."""
        row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def key_of(*parts: str) -> str:
    """A digest of texts; no two different rows of texts share one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
