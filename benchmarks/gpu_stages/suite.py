"""One run of the suite: what it measures on, how long it may take, and the record that it adds rows to."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Suite:
    """The record and its limits.

    Args:
        path: of the record; it is written anew, in one step, after each row.
        record: what is known so far, ``{"stages": {stage: {"rows": {name: row}}}, ...}``.
        device: ``cuda``, or ``cpu`` in a dry run.
        dry: toy sizes: the code is exercised, no figure means anything.
        limit: seconds that a stage may take.
    """

    path: Path
    record: dict[str, Any]
    device: torch.device
    dry: bool
    limit: float
    stage: str = ""
    _ends: float = field(default=0.0)

    def begin(self, stage: str) -> None:
        """Start a stage's clock."""
        self.stage = stage
        self._ends = time.monotonic() + self.limit
        self.record["stages"].setdefault(stage, {"rows": {}})

    @property
    def left(self) -> float:
        """Seconds of the stage that remain."""
        return self._ends - time.monotonic()

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The current stage's rows by name."""
        return self.record["stages"][self.stage]["rows"]

    def row(self, name: str, measure: Callable[[], dict[str, Any]], *, seconds: float = 10.0) -> dict[str, Any]:
        """Measure a row unless the record has it; what fails or is not reached is recorded as that.

        Args:
            measure: returns the row.
            seconds: what it may take; with less time left the row is put off, and a resumed run measures it.
        """
        known = self.rows.get(name)
        if known is not None and not {"put_off", "error"} & known.keys():
            return known
        if not self.dry and self.left < seconds:
            found: dict[str, Any] = {"put_off": f"{self.left:.0f} s were left where {seconds:.0f} s may be needed"}
        else:
            started = time.monotonic()
            try:
                found = measure()
            except torch.cuda.OutOfMemoryError:
                found = {"out_of_memory": True}
            except Exception as error:
                # one broken row must not cost the others their turn on a lent machine; it makes the exit code 1
                found = {"error": f"{type(error).__name__}: {error}"[:2000], "trace": traceback.format_exc()[-3000:]}
            found["took"] = round(time.monotonic() - started, 2)
        self.rows[name] = found
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.write()
        print(f"[{self.stage}] {name}: {_short(found)}", flush=True)
        return found

    def write(self) -> None:
        """Replace the record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def rounds(self) -> int:
        """Turns of each measurement."""
        return 1 if self.dry else 5

    @property
    def errors(self) -> list[str]:
        """Rows of any stage that failed."""
        return [
            f"{stage}: {name}: {row['error']}"
            for stage, found in self.record["stages"].items()
            for name, row in found["rows"].items()
            if "error" in row
        ]

    @property
    def gate_is_green(self) -> bool:
        """Whether this record's gate stage has passed, whole."""
        rows = self.record["stages"].get("gate", {}).get("rows", {})
        return bool(rows) and all(row.get("passed") or "absent" in row for row in rows.values())


def _short(row: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in row.items() if key != "trace"})
    return text if len(text) <= 400 else text[:400] + " ..."
