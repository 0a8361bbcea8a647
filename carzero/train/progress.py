"""What a run shows while it goes on: a bar or lines, two tables, and a clean way to be interrupted."""

from __future__ import annotations

import contextlib
import csv
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "data_wait", "peak_mib")
#: Ctrl-C, the end of a job, and the notice before it that schedulers can be asked for.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """SIGINT, SIGTERM and SIGUSR1 set a flag that the loop reads between steps; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for known in SIGNALS:
            signal.signal(known, signal.default_int_handler if known == signal.SIGINT else signal.SIG_DFL)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Catch the signals inside the block; in a thread other than the main one, leave them alone.

        What SIGCHLD does, which reading processes change, comes back as well.
        """
        try:
            children = signal.getsignal(signal.SIGCHLD)
            before = {n: signal.signal(n, self._note) for n in SIGNALS} | {signal.SIGCHLD: children}
        except ValueError:
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def peak_mib(device: torch.device) -> int:
    """Largest memory so far: that of torch's allocator on a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


class Log:
    """Progress on the console, a row per step in ``metrics.csv`` and one per validation in ``validation.csv``.

    Args:
        out: folder of the run.
        step: steps already done; later rows of an interrupted run are dropped.
        steps: length of the run.
        every: steps between lines where the console is no terminal.
        quiet: show nothing.
    """

    def __init__(self, out: Path, step: int, steps: int, every: int, quiet: bool = False) -> None:
        self.path, self.validations = out / "metrics.csv", out / "validation.csv"
        self.steps, self.every, self.quiet = steps, every, quiet
        _keep_rows(self.path, step, COLUMNS)
        if self.validations.exists():
            _keep_rows(self.validations, step, None)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        console = Console(file=sys.stderr, quiet=quiet)
        self._live = console.is_terminal and not quiet
        text = "loss {task.fields[loss]:.3f}  {task.fields[more]}"
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn(text), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task("train", total=steps, completed=step, loss=float("nan"), more="")
        self._bar.start()

    def step(self, row: Mapping[str, float], texts: int, eta: float) -> None:
        """Record one step; `row` has the keys of `COLUMNS`, `texts` is the number in it, `eta` is in seconds."""
        whole = ("step", "epoch", "peak_mib")
        self._writer.writerow([row[c] if c in whole else f"{row[c]:.6g}" for c in COLUMNS])
        self._file.flush()
        # both directions score every image against every text
        more = (
            f"{2 * texts * row['images_per_s'] / 1000:.1f}k pairs/s  {row['images_per_s']:.0f} images/s  "
            f"{row['data_wait']:.0%} waiting for data  {row['peak_mib']:.0f} MiB"
        )
        self._bar.update(self._task, completed=row["step"], loss=row["loss"], more=more)
        due = row["step"] % self.every == 0 or row["step"] in (1, self.steps)
        if due and not self._live and not self.quiet:
            minutes, seconds = divmod(round(eta), 60)
            print(
                f"step {row['step']:.0f}/{self.steps}  epoch {row['epoch']:.0f}  loss {row['loss']:.4f}  "
                f"lr {row['lr']:.2e}  grad {row['grad_norm']:.2f}  {more}  ETA {minutes}:{seconds:02d}",
                flush=True,
            )

    def validation(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the AUROC of each class and their mean after a step."""
        new = not self.validations.exists()
        with self.validations.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *figures])
            writer.writerow([step, *(f"{value:.6g}" for value in figures.values())])
        if not self.quiet:
            self._bar.console.print(f"step {step}: zero-shot AUROC {figures['macro']:.3f}", highlight=False)

    def close(self) -> None:
        """Stop the bar and close the table."""
        self._bar.stop()
        self._file.close()


def _keep_rows(path: Path, step: int, columns: tuple[str, ...] | None) -> None:
    """Rewrite a table with its rows up to a step; a row that a crash cut short goes too."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    head = list(columns) if columns else rows[0]
    kept = [r for r in rows[1:] if len(r) == len(head) and r[0].isdigit() and int(r[0]) <= step]
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *kept])
    os.replace(partial, path)
