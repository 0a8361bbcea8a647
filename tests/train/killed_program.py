"""Run by test_never_lost: a run killed at many moments and resumed each time; what each came to, as JSON on stdout.

Every run is a forked process, so that the libraries are imported once and a kill is a real one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from carzero.train.config import TrainConfig
from carzero.train.loop import train
from carzero.train.options import read_config
from carzero.train.start import build_model

#: Audit events at which files change.
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def forked(act: Callable[[], None]) -> int:
    """Exit status of a process that does this and nothing else; negative: the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(out: Path) -> dict:
    """Losses of all steps and the bits of the weights; the file around them lists its metadata in any order."""
    rows = (out / "metrics.csv").read_text().splitlines()
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(out / "model" / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return {"losses": [row.split(",")[2] for row in rows[1:]], "model": digest.hexdigest()}


def at_event(number: int, out: Path) -> Callable[[str, tuple], None]:
    """An audit hook that kills its process at the n-th change of a file below `out`."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in CHANGES and str(out) in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def killed(config: TrainConfig, arm: Callable[[Path], None], name: str) -> dict:
    """Train, be killed as `arm` says, resume; what came of it."""
    out = Path(config.out).with_name(name)
    mine = dataclasses.replace(config, out=str(out))

    def first() -> None:
        arm(out)
        train(mine, quiet=True)

    status = forked(first)
    left = [p.name for p in (out / "checkpoints").glob("*")] if out.exists() else []
    again = forked(lambda: train(mine, resume="auto", quiet=True) and None)
    found = {"status": status, "resumed": again, "left": left, **(outcome(out) if again == 0 else {})}
    shutil.rmtree(out)
    return found


def full_disk(config: TrainConfig) -> dict:
    """Three steps; then no file may grow beyond 100 kB; then it may again."""
    out = Path(config.out).with_name("full")
    short = dataclasses.replace(config, out=str(out))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        train(short, resume="auto", quiet=True)

    def three() -> None:
        from carzero.train import loop

        class Stopping(loop.Log):
            def step(self, row, texts, eta):
                super().step(row, texts, eta)
                if row["step"] == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

        loop.Log = Stopping
        train(short, quiet=True)

    statuses = [forked(three), forked(limited)]
    left = sorted(p.name for p in (out / "checkpoints").glob("*"))
    statuses.append(forked(lambda: train(short, resume="auto", quiet=True) and None))
    return {"statuses": statuses, "left": left, **outcome(out)}


def import_all(config: TrainConfig) -> None:
    """What a run imports when it needs it: once here and not in every forked process."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure

    assert matplotlib.figure
    build_model(config, ["there is no nodule"])


def main(config: TrainConfig, events: int, moments: int, share: int = 0, shares: int = 1) -> None:
    """Kill at so many of the changes of files and so many moments; of both, every `shares`-th from `share` on."""
    import_all(config)
    count = Path(config.out).with_name("count")
    whole = Path(config.out)

    def counting() -> None:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            seen += event in CHANGES and str(whole) in str(arguments[0])

        sys.addaudithook(hook)
        train(config, quiet=True)
        total = seen
        count.write_text(str(total))

    assert forked(counting) == 0
    total = int(count.read_text())
    at = sorted({1 + round(i * (total - 1) / max(1, events - 1)) for i in range(events)})
    found = [
        killed(config, lambda out, n=n: sys.addaudithook(at_event(n, out)), f"event{n}") for n in at[share::shares]
    ]
    # the default action of SIGALRM ends a process as SIGKILL does, inside any library
    for k in range(share, moments, shares):
        seconds = 0.02 + 0.05 * k
        found.append(killed(config, lambda _, s=seconds: signal.setitimer(signal.ITIMER_REAL, s) and None, f"time{k}"))
    print(json.dumps({"whole": outcome(whole), "events": total, "killed": found, "full_disk": full_disk(config)}))


if __name__ == "__main__":
    main(TrainConfig.from_mapping(read_config(sys.argv[1])), *map(int, sys.argv[2:]))
