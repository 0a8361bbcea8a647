"""``carzero app``: a page in the browser that scores a radiograph and shows where the model looked."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from carzero.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="model folder, hub id, or published .ckpt file")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id; a published .ckpt needs one")
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="scores.json of `carzero calibrate`, for quantiles (default: the one in the model's folder, if any)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where present)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, which only this machine reaches)",
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0 takes a free one (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    from carzero.app.server import is_loopback, serve

    if not 0 <= args.port < 2**16:
        raise UserError(f"--port lies between 0 and 65535, got {args.port}.")
    served = serve(open_desk(args), host=args.host, port=args.port)
    print(f"carzero app: {served.url} (Ctrl+C ends it). Not a medical device.", flush=True)
    if not is_loopback(args.host):
        print(
            f"carzero app: warning: --host {args.host} lets every machine that reaches this one use the page. It has "
            "no password and no encryption: radiographs travel in the clear.",
            file=sys.stderr,
            flush=True,
        )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("carzero app: ended; its files are deleted.", file=sys.stderr)
    finally:
        served.close()
    return 0


def open_desk(args: argparse.Namespace):
    """The model and its reference set, as the options name them."""
    from carzero.app.desk import Desk
    from carzero.models.checkpoint import load
    from carzero.zeroshot.reference import FILE, ScoreReference

    model = load(args.weights, tokenizer=args.tokenizer)
    own = Path(args.weights) / FILE
    path = args.reference or (own if own.is_file() else None)
    return Desk(model, None if path is None else ScoreReference.load(path), device=args.device)
