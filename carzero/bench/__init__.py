"""`carzero bench`: the op's backends beside the published decoder, on this machine."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="smaller M and Q, float32 only: about 20 seconds")
    parser.add_argument("--json", action="store_true", help="print the samples as JSON instead of tables")
    parser.add_argument("--rounds", type=int, default=None, help="rounds after the warm-up (default: 5, quick: 3)")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory column (a process per row)")


def run(args: argparse.Namespace) -> int:
    from carzero.bench.command import run_bench

    return run_bench(quick=args.quick, as_json=args.json, rounds=args.rounds, memory=not args.no_memory)
