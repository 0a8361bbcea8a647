"""The training loop, in the order things happen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.checkpoint import load
from carzero.train.batches import Batch, PairStream
from carzero.train.checkpoint import (
    checkpoints,
    newest_whole,
    random_states,
    read_state,
    restore_random,
    save_checkpoint,
)
from carzero.train.config import TrainConfig
from carzero.train.engine import Engine
from carzero.train.folder import same_run, versions, write_config, write_model
from carzero.train.loss import positive_pairs
from carzero.train.order import dropout_seed
from carzero.train.progress import Interruption, Log, peak_mib
from carzero.train.ranks import Ranks
from carzero.train.reader import Reader
from carzero.train.schedule import learning_rate
from carzero.train.start import build_model, build_optimizer
from carzero.train.step import StepInputs, accumulate_gradients
from carzero.train.summary import write_summary
from carzero.train.validate import Validator


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
    config: TrainConfig,
    *,
    model: CARZero | None = None,
    resume: bool | Literal["auto"] = False,
    quiet: bool = False,
) -> TrainResult:
    """Train on image-text pairs and leave a model folder.

    Args:
        model: the model to train; built as `config` says if None.
        resume: go on from the newest whole checkpoint in ``config.out``, to the same losses as without the
            interruption; "auto" starts anew where there is none yet.
        quiet: print nothing but what went wrong.

    Returns:
        the model and the losses; ``config.out`` then holds ``model/``, ``checkpoints/``, ``metrics.csv``,
        ``config.yaml``, ``summary.html`` and, with a labelled set, ``validation.csv``.

    Raises:
        UserError: the manifest or a setting is wrong, the folder holds another run, the loss is no longer finite, an
            image cannot be read or a checkpoint cannot be written. Except for the last two kinds of error a run that
            was under way has left a checkpoint of its last step.
    """
    out = Path(config.out)
    engine = Engine(config)
    ranks = engine.ranks
    say: Callable[[str], None] = (lambda _: None) if quiet or not ranks.first else print

    stream = PairStream(config, ranks)
    folder = newest_whole(out, ranks, print) if resume else None
    if folder is None and resume is True:
        raise UserError(f"train: there is no checkpoint to resume in {out / 'checkpoints'}; start without --resume.")
    if folder is None and checkpoints(out):
        raise UserError(f"train: {out} already holds a run; go on with --resume, or choose another --out.")
    state: dict[str, Any] | None = None
    if folder is not None:
        state = read_state(folder)
        same_run(state, config, stream.fingerprint)
        model, source = load(folder / "model"), f"checkpoint {folder}"
    elif model is None:
        model, source = build_model(config, stream.texts)
    else:
        source = "given"
    parameters = sum(p.numel() for p in model.parameters())
    stream.prepare_for(model)
    validator = Validator(config.validation, model.config, ranks)
    model = engine.prepare(model)
    optimizer = engine.prepare_optimizer(build_optimizer(model, config))
    # from here on the generator belongs to the encoders' dropout
    torch.manual_seed(config.seed + ranks.rank)
    step = 0
    if state is not None:
        step = int(state["step"])
        engine.restore(state, optimizer)
        restore_random(state["random"], ranks)
    steps = config.steps or stream.course.steps(config.epochs)

    if ranks.first:
        say(write_config(out, config).rstrip())
    precision = str(engine.dtype).removeprefix("torch.")
    say(f"model: {source}; {parameters / 1e6:.2f} M parameters")
    say(f"device: {engine.device} ({engine.why_device}); precision: {precision} ({engine.why_dtype})")
    if ranks.world > 1:
        most = ranks.sizes(max(map(stream.course.batch_size, config.batch_sizes)))[0]
        weights = "spread over them" if engine.sharded else "in each"
        say(f"processes: {ranks.world}; each holds {most} images of a step at most; weights {weights}")
    say(f"data: {stream.describe()}; {steps} steps, {stream.course.steps(1)} in the first epoch")
    if validator.active:
        say(f"validation: {validator.describe()}")

    def save() -> None:
        random, whole = ranks.objects(random_states()), engine.whole_model(model)
        kept = {**engine.state(optimizer), "random": random, "config": config.as_dict(), "versions": versions()}
        kept["pairs"] = stream.fingerprint
        save_checkpoint(out, whole, kept, step, ranks, keep=config.keep)

    losses: list[float] = []
    log = Log(out, step, steps, config.log_every, quiet) if ranks.first else None
    engine.start_trackers()
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first, stopped = step, 0
    with Interruption().listening() as interruption:
        reader = Reader(stream, step, steps, config.workers, pin=engine.device.type == "cuda")
        started = clock = time.perf_counter()
        try:
            while step < steps:
                batch, problem = (None, None) if interruption.signal else _next(reader)
                waited = time.perf_counter() - clock
                # one process that is told to stop, or cannot read, stops all before the same step
                told, unread = _agree(ranks, engine.device, interruption.signal or 0, problem is not None)
                if told or unread:
                    if step > first:
                        save()
                    if unread:
                        raise UserError(next(p for p in ranks.objects(problem) if p is not None))
                    stopped = told
                    break
                assert batch is not None
                rate = learning_rate(
                    step, peak=config.learning_rate, steps=steps, warmup=config.warmup, schedule=config.schedule
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                batch = batch.to(engine.device)
                inputs = StepInputs(
                    pixels=batch.pixels,
                    texts=batch.texts,
                    per_image=config.texts_per_image,
                    total_images=len(batch.known),
                    positives=_positives(config, batch, ranks, engine.device),
                    seed=dropout_seed(config.seed, step),
                )
                loss = accumulate_gradients(
                    model, inputs, ranks, micro_batch=config.micro_batch, dtype=engine.dtype, backend=config.backend,
                    backward=engine.backward, sharded=engine.sharded,
                ).item()  # fmt: skip
                norm = engine.clip(model, config.clip)
                if not engine.skips(loss, norm):
                    _stop_unless_finite(loss, norm, step, rate, out)
                optimizer.step()

                epoch = stream.course.place(step)[0]
                step += 1
                losses.append(loss)
                now = time.perf_counter()
                row = {
                    "step": step,
                    "epoch": epoch,
                    "loss": loss,
                    "lr": rate,
                    "grad_norm": norm,
                    "images_per_s": len(batch.known) / (now - clock),
                    "data_wait": waited / (now - clock),
                    "peak_mib": peak_mib(engine.device),
                }
                clock = now
                if log:
                    log.step(row, len(batch.said), (steps - step) * (now - started) / (step - first))
                engine.track(row, step)
                if validator.due(step, steps):
                    figures = validator(model, dtype=engine.dtype, backend=config.backend)
                    if log:
                        log.validation(step, figures)
                    engine.track({f"auroc/{name}": value for name, value in figures.items()}, step)
                if step % config.checkpoint_every == 0 or step == steps:
                    save()
        finally:
            reader.close()
            engine.close()
            if log:
                log.close()

    model.eval()
    if not stopped:
        whole = engine.whole_model(model)
        if ranks.first:
            assert whole is not None
            write_model(whole, out)
    if ranks.first:
        write_summary(out, config, step=step, steps=steps, source=source, parameters=parameters)
    return TrainResult(model, out, step, losses, stopped or None)


def _next(reader: Reader) -> tuple[Batch | None, str | None]:
    try:
        return reader.next(), None
    except UserError as error:
        return None, str(error)


def _agree(ranks: Ranks, device: torch.device, signal: int, unread: bool) -> tuple[int, bool]:
    """The largest signal, and whether any rank has no batch."""
    both = ranks.stack(torch.tensor([[signal, int(unread)]], device=device)).amax((0, 1))
    return int(both[0]), bool(both[1])


def _positives(
    config: TrainConfig, batch: Batch, ranks: Ranks, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """This rank's rows, by its images and by its texts."""
    if config.positives == "diagonal":
        return None
    known = batch.known if config.positives == "report" else None
    per_image, images = config.texts_per_image, ranks.part(len(batch.known))
    texts = slice(images.start * per_image, images.stop * per_image)
    by_image = positive_pairs(batch.said, known, per_image=per_image, images=images)
    by_text = positive_pairs(batch.said, known, per_image=per_image, texts=texts).T
    return by_image.to(device), by_text.to(device)


def _stop_unless_finite(loss: float, norm: float, step: int, rate: float, out: Path) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kept = checkpoints(out)
    where = f"the newest checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
    raise UserError(
        f"train: at step {step + 1} the loss is {loss} and the gradient's norm {norm}; the step was not taken and "
        f"{where}. Lower the learning rate (now {rate:.2e}), lengthen the warm-up, or train in float32."
    )
