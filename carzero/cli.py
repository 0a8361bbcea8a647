"""The command line: parses, calls, prints. Each command lives beside what it runs.

A command's module defines ``configure(parser)`` and ``run(args) -> int`` (the exit code), or, where it parses its words
itself, ``main(words) -> int``. It is imported only when the command is used, so that ``carzero --help`` is instant and
a missing extra harms no other command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from carzero.errors import UserError

#: command -> (module, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "info": ("carzero.diagnostics", "show what this installation can do; --check runs the correctness gate"),
    "bench": ("carzero.bench", "compare the op's backends on this machine"),
    "demo": ("carzero.demo.command", "draw radiographs, train a small model, classify, write a page"),
    "train": ("carzero.train.command", "train on image-report pairs listed in a manifest"),
    "classify": ("carzero.zeroshot.command", "score radiographs against prompts"),
    "calibrate": ("carzero.zeroshot.calibrate_command", "give scores a reference set, and probabilities"),
    "explain": ("carzero.zeroshot.explain_command", "draw where the model looked for a finding"),
    "evaluate": ("carzero.assess.command", "measure scores against labels, or a model on a benchmark, with intervals"),
    "verify": ("carzero.assess.verify", "check that a model reaches the published figures of a benchmark"),
    "align-prompts": ("carzero.prompts.command", "rewrite reports as standard sentences, by rules or a language model"),
    "retrieve": ("carzero.zeroshot.retrieve_command", "rank reports for images and images for reports"),
    "data": (
        "carzero.train.data_command",
        "check a manifest before a run, make one from a data set's files, or write shards",
    ),
    "app": ("carzero.app.command", "a page in the browser: scores and maps of a radiograph, on this machine"),
    "convert": ("carzero.models.convert", "turn a published checkpoint into a carzero model folder"),
    "export": ("carzero.models.export_command", "write a model as ONNX files and torch.export programs"),
}
#: Commands whose settings are a typed configuration with files of its own.
OWN_PARSER = ("train",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: wrong input, with one sentence on stderr)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="carzero", description="Zero-shot chest radiograph classification.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    if chosen in OWN_PARSER:
        words = argv[argv.index(chosen) + 1 :]
        return _guarded(chosen, lambda: importlib.import_module(COMMANDS[chosen][0]).main(words))
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            importlib.import_module(module).configure(sub)
    args = parser.parse_args(argv)
    if args.version:
        from carzero import __version__

        print(f"carzero {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    return _guarded(args.command, lambda: importlib.import_module(COMMANDS[args.command][0]).run(args))


def _guarded(command: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except UserError as error:
        print(f"carzero {command}: {error}", file=sys.stderr)
        return 2
