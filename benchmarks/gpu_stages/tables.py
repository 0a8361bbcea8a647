"""A record as Markdown."""

from __future__ import annotations

from typing import Any


def render(record: dict[str, Any]) -> str:
    """All stages' rows, with where they come from."""
    facts = record["facts"]
    lines = [
        f"# {record['device']}",
        "",
        f"Commit `{(record['commit'] or 'unknown')[:10]}`{' with uncommitted changes' if record['dirty'] else ''}, "
        f"{record['date']}; torch {facts['versions']['torch']}, CUDA {facts['cuda']}, "
        f"triton {facts['versions'].get('triton')}; `{record['command']}`"
        + (". **A dry run at toy sizes: no figure means anything.**" if record["dry"] else ""),
        "",
    ]
    for stage, found in record["stages"].items():
        lines += [f"## {stage}", ""]
        for name, row in found["rows"].items():
            lines += [f"**{name}**: {_line(row)}", ""]
            parts = {k: v for k, v in (row.get("contenders") or row).items() if isinstance(v, dict)}
            if parts:
                keys = list(dict.fromkeys(k for v in parts.values() for k in v if k not in ("calls", "choice")))
                lines += ["| | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
                lines += [
                    f"| {part} | " + " | ".join(_cell(k, v.get(k)) for k in keys) + " |" for part, v in parts.items()
                ]
                lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    plain = {k: v for k, v in row.items() if isinstance(v, str | int | float) and k not in ("trace", "output")}
    return "; ".join(f"{k} {_cell(k, v)}" for k, v in plain.items())


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "/")
    if key in ("seconds", "seconds_per_image"):
        return f"{1e3 * value:.3f} ms"
    if key == "flops_per_s" or (key == "flops" and value > 1e9):
        return f"{value / 1e12:.2f} T"
    if key in ("peak_bytes", "bytes_per_s"):
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}"
