"""Everything that is to be known of a GPU, in stages that each end within nine minutes and merge into one record.

    gate      correctness on the device: the quick gate, the op's tests, the kernels' tests, compute-sanitizer
    kernels   the parts: cuBLAS at our shapes, each GEMM with its epilogue three ways, SDPA at head width 192, MaxSim,
              what lies between the GEMMs
    op        forward and forward+backward against the published module, time and peak memory
    step      a training step with ViT-B/16 and BERT-base: the op's share
    zeroshot  192 prompts on 4,096 images against the published loop

The record is benchmarks/results/gpu-COMMIT-DEVICE.json, with its tables beside it in Markdown. A stage that was cut off
or put off rows goes on when it is run again; rows that are there are not measured again. Nothing is measured unless the
record's gate is green.

Usage::

    python benchmarks/gpu_suite.py --stage gate|kernels|op|step|zeroshot|all
    python benchmarks/gpu_suite.py --stage all --dry-run --out FOLDER     # toy sizes on the CPU: exercises the code
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_stages import gate, kernels, op, step, tables, zeroshot
from gpu_stages.suite import Suite

from carzero.diagnostics import facts

HERE = Path(__file__).resolve().parent
STAGES = {"gate": gate.run, "kernels": kernels.run, "op": op.run, "step": step.run, "zeroshot": zeroshot.run}


def git(*arguments: str) -> str:
    answer = subprocess.run(["git", "-C", str(HERE.parent), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def open_record(folder: Path, device: torch.device, dry: bool) -> tuple[Path, dict[str, Any]]:
    """The record of this commit and device, begun where there is none."""
    name = "dry run on the CPU" if dry else torch.cuda.get_device_name(device)
    commit = git("rev-parse", "HEAD")
    slug = "dry" if dry else name.lower().replace(" ", "-")
    path = folder / f"gpu-{commit[:8] or 'nocommit'}-{slug}.json"
    if path.exists():
        return path, json.loads(path.read_text(encoding="utf-8"))
    record = {
        "command": shlex.join(["python", "benchmarks/gpu_suite.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "dry": dry,
        "device": name,
        "facts": facts(),
        "stages": {},
    }
    return path, record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the record")
    parser.add_argument("--limit", type=float, default=510.0, help="seconds that a stage may take")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu_suite.py: there is no CUDA device here; --dry-run exercises the code without one", file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.dry_run else "cuda")
    path, record = open_record(args.out, device, args.dry_run)
    suite = Suite(path, record, device, args.dry_run, args.limit)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        if stage != "gate" and not suite.gate_is_green:
            print(f"gpu_suite.py: {stage} is not measured: the record's gate is not green; run --stage gate first")
            return 1
        suite.begin(stage)
        STAGES[stage](suite)
    path.with_suffix(".md").write_text(tables.render(record), encoding="utf-8")
    for error in suite.errors:
        print(f"gpu_suite.py: {error}", file=sys.stderr)
    print(f"record: {path}")
    return 1 if suite.errors or not suite.gate_is_green else 0


if __name__ == "__main__":
    sys.exit(main())
