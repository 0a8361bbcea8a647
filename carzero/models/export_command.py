"""`carzero export`: a model folder as ONNX files and torch.export programs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("weights", metavar="MODEL", help="model folder, hub id, or published checkpoint")
    parser.add_argument("--tokenizer", metavar="FOLDER_OR_ID", help="tokenizer of a published checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the files into")
    parser.add_argument("--format", choices=("onnx", "torch", "both"), default="both", help="default: both")


def run(args: argparse.Namespace) -> int:
    """Write, check and say how far each file is from the model."""
    import torch

    from .checkpoint import load
    from .export import export

    start = time.perf_counter()
    model = load(args.weights, tokenizer=args.tokenizer, dtype=torch.float32)
    files = export(model, args.out, ("onnx", "torch") if args.format == "both" else (args.format,))
    print("| file | MB | largest difference from the model | where values reach |\n|---|---:|---:|---:|")
    for file in files:
        size = file.path.stat().st_size / 1e6
        print(f"| `{file.path.name}` | {size:.1f} | {file.difference:.1e} | {file.largest:.3g} |")
    seconds = time.perf_counter() - start
    print(f"\nWrote {args.out} in {seconds:.0f} s; {args.out / 'export.json'} describes inputs and outputs.")
    return 0
