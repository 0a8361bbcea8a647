"""``carzero train``: each field of `TrainConfig` is an option; those given win over ``--config``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from carzero.train.config import TrainConfig, read_config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="JSON or YAML file with any of the options below as keys")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    for field in dataclasses.fields(TrainConfig):
        default = "" if field.default is dataclasses.MISSING or field.default is None else f" (default {field.default})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            metavar=field.name.rsplit("_", 1)[-1].upper(),
            # argparse reads % as a format
            help=(field.metadata["help"] + default).replace("%", "%%"),
        )


def run(args: argparse.Namespace) -> int:
    from carzero.train.loop import train
    from carzero.train.ranks import join, leave

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(args, f.name)}
    values = {**(read_config(args.config) if args.config else {}), **given}
    first = join().first
    try:
        result = train(TrainConfig.from_mapping(values), resume=args.resume)
    finally:
        leave()
    if result.signal is not None:
        end = f"stopped after step {result.step}; go on with: carzero train --out {Path(result.out)} --resume ..."
    else:
        end = f"wrote {Path(result.out) / 'model'}"
    if first:
        print(end)
    return 0 if result.signal is None else 128 + result.signal
