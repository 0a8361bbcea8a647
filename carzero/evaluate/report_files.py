"""A report's files: JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import json
import os
from pathlib import Path

from carzero.errors import UserError
from carzero.evaluate.report import NOT_A_DEVICE, Report


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``metrics.json``, ``per_class.csv``, ``report.md`` and ``report.tex`` into a folder; returns the paths."""
    out = Path(folder)
    texts = {
        "metrics.json": json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n",
        "per_class.csv": report.per_class().to_csv(index=False),
        "report.md": _markdown(report),
        "report.tex": _latex(report),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = out / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, out / name)
    except OSError as error:
        raise UserError(f"The report cannot be written to {out}: {error.strerror}.") from None
    return [out / name for name in texts]


def _markdown(report: Report) -> str:
    def cell(text: object) -> str:
        return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")

    lines = [f"# {cell(report.title)}", "", *(cell(s) + "  " for s in report.about()), ""]
    for heading, table in report.tables().items():
        lines += [
            f"## {heading}",
            "",
            "| " + " | ".join(map(cell, table.columns)) + " |",
            "|---" * table.shape[1] + "|",
        ]
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
        lines.append("")
    return "\n".join([*lines, NOT_A_DEVICE, ""])


def _latex(report: Report) -> str:
    parts = ["% needs \\usepackage{booktabs,longtable}"]
    for heading, table in report.tables().items():
        caption = _tex(f"{heading}. {report.title}. {report.about()[1]}")
        escaped = table.astype(str).map(_tex)
        escaped.columns = [_tex(str(c)) for c in table.columns]
        parts.append(escaped.to_latex(index=False, escape=False, longtable=len(table) > 40, caption=caption))
    return "\n".join(parts)


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)
