"""``carzero train``: each field of `TrainConfig` is an option; those given win over ``--config``."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from carzero.errors import UserError


def main(words: Sequence[str]) -> int:
    """Train as these words say.

    Returns:
        0: the run is complete, or it was told to end by SIGTERM or SIGUSR1 (the end of a job) and left a checkpoint;
        130: it was interrupted by SIGINT (Ctrl-C) and left a checkpoint.
    """
    try:
        from carzero.train.options import parse_command, to_yaml
    except ImportError as error:
        raise UserError(f"train: {error.name} is missing; install it: pip install 'carzero[train]'.") from None
    asked = parse_command(words)
    if asked.print_config:
        print(to_yaml(asked.config), end="")
        return 0
    from carzero.train.loop import train
    from carzero.train.ranks import leave

    first = int(os.environ.get("RANK", "0")) == 0
    try:
        result = train(asked.config, resume="auto" if asked.resume == "auto" else asked.resume == "must")
    finally:
        leave()
    if first and result.signal is None:
        print(f"wrote {result.out / 'model'} and {result.out / 'summary.html'}")
    elif first:
        print(f"stopped after step {result.step}; go on with the same command and --resume auto")
    return 128 + signal.SIGINT if result.signal == signal.SIGINT else 0
