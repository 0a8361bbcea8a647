"""Measure the rules engine on the Open-i reports: precision and recall against human MeSH codes, and reports a second.

Usage::

    python benchmarks/align_openi.py --reports reports.csv [--half all|developed|held-out] [--workers N]

The file has the columns uid, findings, impression and mesh_major (Open-i / Indiana University, 3,955 reports). A fixed
random half of the reports was read while the rules were written ("developed"); the other half was not ("held-out").
A report counts as positive for a finding when a statement affirms it, certain or not. The twelve findings with the most
coded reports are summed ("micro").
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

from openi_mesh import findings_of

from carzero.prompts.align import align_rules, report_text
from carzero.prompts.statement import AlignedReport


def half_of(uids: list[str], half: str) -> set[str]:
    """The uids of a half of the reports: the same for ever, whatever the file's order."""
    shuffled = sorted(uids)
    random.Random(20260101).shuffle(shuffled)
    middle = len(shuffled) // 2
    return {"all": set(shuffled), "developed": set(shuffled[:middle]), "held-out": set(shuffled[middle:])}[half]


def counts(aligned: list[AlignedReport], codes: list[str]) -> pd.DataFrame:
    """For each finding the coded reports and how many of them, and of others, the engine finds.

    Returns:
        columns coded, both, ours (int), precision and recall (float); a row a finding, the commonest first.
    """
    rows: dict[str, list[int]] = {}
    for report, code in zip(aligned, codes):
        truth = findings_of(code)
        if truth is None:
            continue
        ours = {s.finding for s in report.statements if not s.negated}
        for finding in truth | ours:
            row = rows.setdefault(finding, [0, 0, 0])
            row[0] += finding in truth
            row[1] += finding in truth and finding in ours
            row[2] += finding in ours
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["coded", "both", "ours"])
    table = table[table["coded"] > 0].sort_values("coded", ascending=False, kind="stable")
    return table.assign(precision=table["both"] / table["ours"], recall=table["both"] / table["coded"])


def micro(table: pd.DataFrame, most: int = 12) -> tuple[float, float]:
    """Precision and recall over the commonest findings together."""
    top = table.head(most)
    return top["both"].sum() / top["ours"].sum(), top["both"].sum() / top["coded"].sum()


def markdown(table: pd.DataFrame) -> str:
    """The table of the documents."""
    lines = ["| finding | coded | precision | recall |", "|---|---:|---:|---:|"]
    for name, row in table.iterrows():
        precision = f"{row['precision']:.3f}" if row["ours"] else "-"
        lines.append(f"| {name} | {row['coded']:.0f} | {precision} | {row['recall']:.3f} |")
    return "\n".join(lines)


def processor_seconds() -> float:
    """Seconds that this process and its ended children have computed."""
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--half", choices=("all", "developed", "held-out"), default="all")
    parser.add_argument("--most", type=int, default=25, help="findings to list (default: 25)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the engine (default: 1)")
    args = parser.parse_args()
    reports = pd.read_csv(args.reports, dtype=str, keep_default_na=False)
    reports = reports[reports["uid"].isin(half_of(reports["uid"].tolist(), args.half))]
    texts = [report_text(row, ("findings", "impression")) for row in reports.to_dict("records")]
    before, start = processor_seconds(), time.perf_counter()
    aligned = list(align_rules(texts, workers=args.workers))
    seconds, used = time.perf_counter() - start, processor_seconds() - before
    table = counts(aligned, reports["mesh_major"].tolist())
    precision, recall = micro(table)
    print(
        f"{len(reports)} reports ({args.half}), {args.workers} process(es), their start included: {seconds:.1f} s, "
        f"{len(reports) / seconds:.0f} reports/s; {len(reports) / used:.0f} reports per second of processor time"
    )
    print(f"micro over the 12 commonest: precision {precision:.3f}, recall {recall:.3f}\n")
    print(markdown(table.head(args.most)))


if __name__ == "__main__":
    main()
