"""What a run shows while it goes on: a bar or lines, metrics.csv, and a clean way to be interrupted."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_s")


class Interruption:
    """SIGINT and SIGTERM set a flag that the loop reads between steps; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.default_int_handler if known == signal.SIGINT else signal.SIG_DFL)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Catch the two signals inside the block; in a thread other than the main one, leave them alone."""
        try:
            before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Log:
    """Progress on the console and a row per step in ``metrics.csv``.

    Args:
        out: folder of the run.
        step: steps already done; later rows of an interrupted run are dropped.
        steps: length of the run.
        every: steps between lines where the console is no terminal.
        quiet: show nothing.
    """

    def __init__(self, out: Path, step: int, steps: int, every: int, quiet: bool = False) -> None:
        self.path = out / "metrics.csv"
        self.steps, self.every, self.quiet = steps, every, quiet
        self._keep_rows(step)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        console = Console(file=sys.stderr, quiet=quiet)
        self._live = console.is_terminal and not quiet
        text = "loss {task.fields[loss]:.3f}  {task.fields[pairs]}  {task.fields[images]:.0f} images/s"
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn(text), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task("train", total=steps, completed=step, loss=float("nan"), pairs="", images=0.0)
        self._bar.start()

    def step(self, row: dict[str, float], texts: int, eta: float) -> None:
        """Record one step; `row` has the keys of `COLUMNS`, `texts` is the number in it, `eta` is in seconds."""
        self._writer.writerow([row[c] if c in ("step", "epoch") else f"{row[c]:.6g}" for c in COLUMNS])
        self._file.flush()
        # both directions score every image against every text
        pairs = f"{2 * texts * row['images_per_s'] / 1000:.1f}k pairs/s"
        self._bar.update(self._task, completed=row["step"], loss=row["loss"], pairs=pairs, images=row["images_per_s"])
        due = row["step"] % self.every == 0 or row["step"] in (1, self.steps)
        if due and not self._live and not self.quiet:
            minutes, seconds = divmod(round(eta), 60)
            print(
                f"step {row['step']:.0f}/{self.steps}  epoch {row['epoch']:.0f}  loss {row['loss']:.4f}  "
                f"lr {row['lr']:.2e}  grad {row['grad_norm']:.2f}  {pairs}  {row['images_per_s']:.0f} images/s  "
                f"ETA {minutes}:{seconds:02d}",
                flush=True,
            )

    def close(self) -> None:
        """Stop the bar and close the table."""
        self._bar.stop()
        self._file.close()

    def _keep_rows(self, step: int) -> None:
        rows: list[list[str]] = []
        if step and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [r for r in list(csv.reader(file))[1:] if len(r) == len(COLUMNS) and int(r[0]) <= step]
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(COLUMNS), *rows])
        os.replace(partial, self.path)
