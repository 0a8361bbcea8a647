"""A run survives: kills, a full disk, damaged checkpoints, dead readers, unreadable images, the end of a job."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carzero.cli import main
from carzero.errors import UserError
from carzero.train import loop
from carzero.train.batches import PairStream
from carzero.train.checkpoint import checkpoints, newest_whole, save_checkpoint
from carzero.train.config import TrainConfig
from carzero.train.engine import Engine
from carzero.train.loop import train
from carzero.train.options import to_yaml
from carzero.train.ranks import Ranks
from carzero.train.reader import Reader

PROGRAM = Path(__file__).with_name("killed_program.py")


@pytest.fixture
def short(config: TrainConfig) -> TrainConfig:
    """Four steps with a checkpoint after each, the newest two kept."""
    return dataclasses.replace(config, steps=4, checkpoint_every=1, keep=2, augment="crop")


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((out / "metrics.csv").open())]


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act) -> None:
    """Do something when a step was recorded."""

    class Acting(loop.Log):
        def step(self, row, texts, eta):
            super().step(row, texts, eta)
            if row["step"] == step:
                act()

    monkeypatch.setattr(loop, "Log", Acting)


def run_program(config: TrainConfig, tmp_path: Path, *counts: int) -> dict:
    """The program's findings; see its `main`."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(to_yaml(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(settings), *map(str, counts)], capture_output=True, text=True,
        timeout=3500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, kills: int) -> None:
    whole = found["whole"]
    assert len(whole["losses"]) == 4
    assert len(found["killed"]) >= kills
    assert any(run["status"] == -signal.SIGKILL for run in found["killed"])
    for run in found["killed"]:
        assert run["status"] in (-signal.SIGKILL, -signal.SIGALRM, 0), run
        assert run["resumed"] == 0, run
        assert run["losses"] == whole["losses"], run
        assert run["model"] == whole["model"], run
    full = found["full_disk"]
    # the third step's checkpoint makes the limited run fail at its first, and nothing of that is left
    assert full["statuses"] == [0, 1, 0]
    assert full["left"] == ["step-000003"], full["left"]
    assert (full["losses"], full["model"]) == (whole["losses"], whole["model"])


def test_killed_at_some_moments_and_on_a_full_disk(short: TrainConfig, tmp_path: Path) -> None:
    check(run_program(short, tmp_path, 4, 1), kills=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(8))
def test_killed_at_every_change_of_a_file_and_at_forty_moments(share: int, short: TrainConfig, tmp_path: Path) -> None:
    found = run_program(short, tmp_path, 10_000, 40, share, 8)
    check(found, kills=(found["events"] + 40) // 8)
    # of all shares together
    assert found["events"] >= 60


def test_damaged_checkpoints_are_set_aside_and_the_run_goes_on_from_the_one_before(
    short: TrainConfig, capsys: pytest.CaptureFixture
) -> None:
    out = Path(short.out)
    whole = train(short, quiet=True).losses
    newest, before = checkpoints(out)[1], checkpoints(out)[0]
    with (newest / "state.pt").open("r+b") as file:
        file.truncate(1000)
    rest = train(short, resume="auto", quiet=True)
    assert rest.losses == whole[3:]
    assert losses(out) == pytest.approx(whole, rel=1e-5)
    assert "step-000004 is damaged (state.pt has 1000 bytes of" in capsys.readouterr().out
    # a byte that changed on the disk, and a file that is gone
    weights = before / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (checkpoints(out)[-1] / "state.pt").unlink()
    with pytest.raises(UserError, match=r"all 2 checkpoints .* are damaged"):
        train(short, resume="auto", quiet=True)
    said = capsys.readouterr().out
    assert "the bytes of model/model.safetensors are not those that were written" in said
    assert "state.pt is missing" in said


def test_the_newest_are_kept_and_a_checkpoint_that_cannot_be_written_leaves_the_others(
    short: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(short.out)
    model = train(short, quiet=True).model
    assert [p.name for p in checkpoints(out)] == ["step-000003", "step-000004"]

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"step-000009 cannot be written \(No space left on device\); the newest whole"):
        save_checkpoint(out, model, {"config": {}}, 9, Ranks(), keep=2)
    # the older one made room for the second attempt
    assert [p.name for p in checkpoints(out)] == ["step-000004"]
    assert newest_whole(out, Ranks(), print) == checkpoints(out)[0]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000004"]


def test_the_end_of_a_job_leaves_a_checkpoint_and_exits_0(
    short: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rare = dataclasses.replace(short, checkpoint_every=100)
    settings = tmp_path / "settings.yaml"
    settings.write_text(to_yaml(rare), encoding="utf-8")
    out = Path(rare.out)
    for number, step in ((signal.SIGTERM, 1), (signal.SIGUSR1, 2)):
        with monkeypatch.context() as patch:
            after_step(patch, step, lambda number=number: os.kill(os.getpid(), number))
            assert main(["train", "--config", str(settings), "--resume", "auto"]) == 0
        assert checkpoints(out)[-1].name == f"step-{step:06d}"
        assert f"stopped after step {step}; go on with the same command and --resume auto" in capsys.readouterr().out
        assert not (out / "model").exists()
    assert main(["train", "--config", str(settings), "--resume", "auto"]) == 0
    assert "wrote" in capsys.readouterr().out
    whole = train(dataclasses.replace(short, out=str(tmp_path / "whole")), quiet=True).losses
    assert losses(out) == pytest.approx(whole, rel=1e-5)


def test_a_dead_reader_is_replaced_and_two_at_one_step_end_the_run(
    short: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = train(short, quiet=True).losses

    def kill_readers() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    read = dataclasses.replace(short, out=str(tmp_path / "read"), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        after_step(patch, 1, kill_readers)
        assert train(read, quiet=True).losses == whole
    crashing = dataclasses.replace(short, out=str(tmp_path / "crashing"), workers=1, checkpoint_every=100)
    original = PairStream.__getitem__

    def crash(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step)

    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(PairStream, "__getitem__", crash)
    with pytest.raises(UserError, match=r"died twice at step 3: .*The step reads 5 images, the first .*\.png"):
        train(crashing, quiet=True)
    assert "new ones are started" in capsys.readouterr().err
    assert [p.name for p in checkpoints(Path(crashing.out))] == ["step-000002"]


def test_an_image_that_cannot_be_read_ends_the_run_with_a_checkpoint(short: TrainConfig, tmp_path: Path) -> None:
    rare = dataclasses.replace(short, checkpoint_every=100)
    whole = train(dataclasses.replace(rare, out=str(tmp_path / "whole")), quiet=True).losses
    stream = PairStream(rare)
    seen = {path for step in (0, 1) for path in stream.image_paths(step)}
    new = next(path for path in stream.image_paths(2) if path not in seen)
    content = Path(new).read_bytes()
    Path(new).write_bytes(content[:60])
    with pytest.raises(UserError, match=f"train: step 3 cannot be read. .*{Path(new).name}"):
        train(rare, quiet=True)
    assert [p.name for p in checkpoints(Path(rare.out))] == ["step-000002"]
    Path(new).write_bytes(content)
    assert train(rare, resume="auto", quiet=True).losses == whole[2:]


def test_auto_starts_anew_where_there_is_nothing(short: TrainConfig) -> None:
    assert train(dataclasses.replace(short, steps=1), resume="auto", quiet=True).step == 1


def test_float16_skips_a_step_whose_scale_was_too_large_but_not_for_ever(short: TrainConfig) -> None:
    engine = Engine(short)
    assert not engine.skips(1.0, math.inf), "there is no scale to lower in float32"
    engine.accelerator.scaler = torch.amp.GradScaler("cpu")
    assert [engine.skips(1.0, math.inf) for _ in range(25)] == [True] * 20 + [False] + [True] * 4
    assert not engine.skips(math.nan, math.nan)
    assert not engine.skips(1.0, 2.0)
    with pytest.raises(UserError, match="float16 scales the loss, which needs a CUDA device, got device cpu"):
        Engine(dataclasses.replace(short, precision="float16"))


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError, RuntimeError])
def test_a_reader_that_dies_while_it_hands_over_a_batch_is_replaced(
    error: type[Exception], short: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pipe to a dead process raises is as good as its death; what is of neither kind is passed on."""
    original = Reader._start

    def start(self: Reader, *, careful: bool = False):
        batches = original(self, careful=careful)
        if careful:
            return batches

        def broken():
            yield next(batches)
            # an error that outlived the test would keep the reading processes alive
            raise error("x")

        return broken()

    whole = train(dataclasses.replace(short, out=f"{short.out}-whole"), quiet=True).losses
    monkeypatch.setattr(Reader, "_start", start)
    reading = dataclasses.replace(short, workers=1)
    if error is RuntimeError:
        with pytest.raises(RuntimeError, match="x"):
            train(reading, quiet=True)
    else:
        assert train(reading, quiet=True).losses == whole
    gc.collect()
    assert multiprocessing.active_children() == []
