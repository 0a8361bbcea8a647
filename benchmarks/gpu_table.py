"""Writes the rows of kernels/table.json that a record of the GPU suite has measured.

Usage::

    python benchmarks/gpu_table.py benchmarks/results/gpu-COMMIT-DEVICE.json     # which rows change, and writes them
    python benchmarks/gpu_table.py --check RECORD                               # exit code 1 if the table would change

A row's choice is the fastest of what the record holds for its shape; the other side's best time is kept beside it.
Times apart by less than 2 % leave a row's choice as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "kernels" / "table.json"
FIELDS = ("block", "warps", "stages", "halves", "flatten", "drawn_once")
NEAR = 0.02


def device_name(record: dict[str, Any]) -> str | None:
    """The table's name of the record's device, or None for a dry run."""
    names = {"A100": "sm_80", "H100": "sm_90", "H200": "sm_90", "B200": "sm_100"}
    return None if record["dry"] else next((v for k, v in names.items() if k in record["device"]), None)


def updated(rows: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows, those that the record measured with its choice and times."""
    device = device_name(record)
    if device is None:
        raise SystemExit(f"gpu_table.py: the table has no name for {record['device']!r}, or the run was a dry one")
    measured = {}
    for found in record["stages"].get("kernels", {}).get("rows", {}).values():
        if "role" in found and "contenders" in found:
            measured[found["role"], found["k"], found["n"], found["dropout"]] = found["contenders"]
    result = []
    for row in rows:
        contenders = measured.get((row["role"], row["k"], row["n"], row["dropout"]))
        if row["device"] == device and row["bits"] == 16 and contenders:
            row = chosen(row, contenders, f"{record['commit'][:8]}, {record['device']}")
        result.append(row)
    return result


def chosen(row: dict[str, Any], contenders: dict[str, Any], where: str) -> dict[str, Any]:
    """The row with the faster side, Triton's fastest tile, and both times."""
    timed = [c for c in contenders.values() if c.get("choice")]
    best = {
        by: min((c for c in timed if c["choice"]["by"] == by), key=lambda c: c["seconds"], default=None)
        for by in ("triton", "cublas")
    }
    if best["triton"] is None or best["cublas"] is None:
        return row
    seconds = {by: c["seconds"] for by, c in best.items() if c}
    by = min(seconds, key=lambda name: seconds[name])
    if abs(seconds["triton"] - seconds["cublas"]) <= NEAR * min(seconds.values()):
        by = row["by"]
    tile = {field: best["triton"]["choice"][field] for field in FIELDS}
    source = f"{where}: triton {seconds['triton']:.3e} s, cublas {seconds['cublas']:.3e} s"
    return {**row, "by": by, **tile, "source": source}


def text(rows: list[dict[str, Any]]) -> str:
    """The table as it is committed: a line a row."""
    return "[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(arguments)
    before = json.loads(args.table.read_text(encoding="utf-8"))
    after = updated(before, json.loads(args.record.read_text(encoding="utf-8")))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    for old, new in changed:
        print(f"{new['device']} {new['role']} {new['k']}x{new['n']}: {old['by']} -> {new['by']}; {new['source']}")
    if not args.check and changed:
        args.table.write_text(text(after), encoding="utf-8")
    print(f"{len(changed)} rows changed")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
