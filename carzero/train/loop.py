"""The training loop, in the order things happen."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.checkpoint import load
from carzero.train.batches import Batch, PairStream, batches
from carzero.train.checkpoint import checkpoints, read_state, replace_folder, restore, save_checkpoint
from carzero.train.config import TrainConfig
from carzero.train.loss import positive_pairs
from carzero.train.order import dropout_seed, steps_per_epoch
from carzero.train.progress import Interruption, Log
from carzero.train.ranks import join
from carzero.train.schedule import learning_rate
from carzero.train.start import build_model, build_optimizer
from carzero.train.step import StepInputs, accumulate_gradients


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Args:
        model: in evaluation mode.
        out: its folder.
        step: optimizer steps done.
        losses: of the steps of this call.
        signal: number of the signal that ended it early, or None.
    """

    model: CARZero
    out: Path
    step: int
    losses: list[float]
    signal: int | None


def train(
    config: TrainConfig, *, model: CARZero | None = None, resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Train on image-text pairs and leave a model folder.

    Args:
        model: the model to train; built as `config` says if None.
        resume: go on from the newest checkpoint in ``config.out``, to the same losses as without the interruption.
        quiet: print nothing.

    Returns:
        the model and the losses; ``config.out`` then holds ``model/``, ``checkpoints/``, ``metrics.csv`` and
        ``config.json``.

    Raises:
        UserError: the manifest or a setting is wrong, the folder holds another run, or the loss is no longer finite.
    """
    out = Path(config.out)
    ranks = join()
    quiet = quiet or not ranks.first
    say = (lambda *_: None) if quiet else print
    if checkpoints(out) and not resume:
        raise UserError(f"train: {out} already holds a run; go on with --resume, or choose another --out.")

    device, why_device = config.resolve_device()
    dtype, why_dtype = config.resolve_precision(device)
    stream = PairStream(config, ranks)
    if model is None:
        model, source = build_model(config, stream.texts)
    else:
        source = "given"
    step, state = 0, None
    if resume:
        folder, state = read_state(out)
        _same_run(state["config"], config)
        model, source = load(folder), f"checkpoint {folder.parent}"
    model = model.to(device).train()
    stream.prepare_for(model)
    optimizer = build_optimizer(model, config)
    # from here on the generator belongs to the encoders' dropout
    torch.manual_seed(config.seed + ranks.rank)
    if state is not None:
        step = restore(state, optimizer, ranks)
    per_epoch = steps_per_epoch(len(stream), config.batch_size)
    steps = config.steps or config.epochs * per_epoch

    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / "config.json", config.as_dict())
    say(json.dumps(config.as_dict(), indent=1))
    say(f"model: {source}; {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    say(f"device: {device} ({why_device}); precision: {str(dtype).removeprefix('torch.')} ({why_dtype})")
    if ranks.world > 1:
        say(f"processes: {ranks.world}; each holds {ranks.sizes(stream.batch_size)[0]} images of a step at most")
    say(f"data: {stream.describe()}; {steps} steps, {per_epoch} an epoch")

    losses: list[float] = []
    log = Log(out, step, steps, config.log_every, quiet) if ranks.first else None
    started = clock = time.perf_counter()
    first, stopped = step, 0
    try:
        with Interruption().listening() as interruption:
            for batch in batches(stream, step, steps, config.workers):
                rate = learning_rate(
                    step, peak=config.learning_rate, steps=steps, warmup=config.warmup, schedule=config.schedule
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                inputs = StepInputs(
                    pixels=batch.pixels.to(device),
                    texts=batch.texts,
                    per_image=config.texts_per_image,
                    total_images=len(batch.known),
                    positives=_positives(config, batch, device),
                    seed=dropout_seed(config.seed, step),
                )
                loss = accumulate_gradients(
                    model, inputs, ranks, micro_batch=config.micro_batch, dtype=dtype, backend=config.backend
                )
                limit = config.clip or math.inf
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
                _stop_unless_finite(loss.item(), norm.item(), step, rate, out)
                optimizer.step()

                step += 1
                losses.append(loss.item())
                now = time.perf_counter()
                speed, clock = len(batch.known) / (now - clock), now
                row = {
                    "step": step,
                    "epoch": (step - 1) // per_epoch,
                    "loss": losses[-1],
                    "lr": rate,
                    "grad_norm": norm.item(),
                    "images_per_s": speed,
                }
                if log:
                    log.step(row, len(batch.said), (steps - step) * (now - started) / (step - first))
                # one process that is told to stop stops all, after the same step
                stopped = int(ranks.stack(torch.tensor([interruption.signal or 0], device=device)).max())
                if step % config.checkpoint_every == 0 or step == steps or stopped:
                    save_checkpoint(out, model, optimizer, step, config.as_dict(), ranks)
                if stopped:
                    break
    finally:
        if log:
            log.close()

    model.eval()
    if not stopped and ranks.first:
        partial = out / ".model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        replace_folder(partial, out / "model")
    return TrainResult(model, out, step, losses, stopped or None)


def _positives(config: TrainConfig, batch: Batch, device: torch.device) -> torch.Tensor | None:
    if config.positives == "diagonal":
        return None
    known = batch.known if config.positives == "report" else None
    return positive_pairs(batch.said, known, per_image=config.texts_per_image).to(device)


def _stop_unless_finite(loss: float, norm: float, step: int, rate: float, out: Path) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kept = checkpoints(out)
    where = f"the newest checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
    raise UserError(
        f"train: at step {step + 1} the loss is {loss} and the gradient's norm {norm}; the step was not taken and "
        f"{where}. Lower the learning rate (now {rate:.2e}), lengthen the warm-up, or train in float32."
    )


def _same_run(before: dict, config: TrainConfig) -> None:
    """A run may be resumed with other paths, workers or logging, but not with another course."""
    free = {"out", "manifest", "workers", "log_every", "checkpoint_every", "device", "backend", "cache", "micro_batch"}
    changed = {k: (before.get(k), v) for k, v in config.as_dict().items() if k not in free and before.get(k) != v}
    if changed:
        listed = "; ".join(f"{k} was {a!r} and is now {b!r}" for k, (a, b) in changed.items())
        raise UserError(f"train: --resume goes on with the settings of the first run, but {listed}.")


def _write_json(path: Path, values: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
