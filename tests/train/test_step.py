"""Gradients of a step cut into parts, and of a run on several processes, are those of the whole batch."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import carzero
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.train.checkpoint import checkpoints, read_state
from carzero.train.config import TrainConfig, Validation
from carzero.train.loop import train
from carzero.train.options import to_yaml
from carzero.train.ranks import Ranks
from carzero.train.step import StepInputs, accumulate_gradients

TEXTS = [
    "There is effusion", "There is no mass", "A large left mass in the lung", "Effusion", "The heart is large",
    "There is a small left effusion and a mass", "Lung", "No effusion",
]  # fmt: skip


def model_of(dropout: float, encoder_dropout: float = 0.0) -> CARZero:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    config = CARZeroConfig.tiny(
        vocab_size=len(tokenizer), width=32, depth=2, heads=2, layers=2, image_size=32, dropout=dropout
    )
    model = CARZero(config, tokenizer).double().train()
    for module in model.text_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = encoder_dropout
    return model


def gradients(model: CARZero, micro_batch: int | None, per_image: int = 2) -> dict[str, torch.Tensor]:
    images = len(TEXTS) // per_image
    pixels = torch.randn(images, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = StepInputs(pixels, TEXTS, per_image, images, None, seed=5)
    torch.manual_seed(7)
    loss = accumulate_gradients(
        model, inputs, Ranks(), micro_batch=micro_batch, dtype=torch.float32, backend="torch"
    )  # fmt: skip
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": loss, "state": torch.get_rng_state().double(), **grads}


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(micro_batch: int) -> None:
    model = model_of(dropout=0.1)
    whole, ours = gradients(model, None), gradients(model, micro_batch)
    assert ours.keys() == whole.keys()
    total = torch.sqrt(sum(g.square().sum() for name, g in whole.items() if name not in ("loss", "state")))
    for name, want in whole.items():
        if name != "state":
            assert float((ours[name] - want).norm()) <= 1e-12 * float(total), name


def test_both_passes_draw_the_same_encoder_dropout() -> None:
    """With dropout in the encoder a part's features and their gradients belong together: against one graph."""
    model = model_of(dropout=0.0, encoder_dropout=0.3)
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.3 for m in model.text_encoder.modules())
    ours = gradients(model, 1)
    # the same parts in one graph: what the two passes stand for
    from carzero.models.encoded import Encoded
    from carzero.train.loss import contrastive_loss

    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    parts = [(model.encode_images(pixels[i : i + 1]), model.encode_texts(TEXTS[2 * i : 2 * i + 2])) for i in range(4)]
    images, texts = (Encoded.cat([p[side] for p in parts]) for side in (0, 1))
    loss = contrastive_loss(*model.logits(images, texts, seed=5, backend="torch"))
    loss.backward()
    assert float(ours["loss"] - loss.detach()) == pytest.approx(0.0, abs=1e-12)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert float((ours[name] - parameter.grad).norm()) <= 1e-12 * (1 + float(parameter.grad.norm())), name
    assert torch.equal(ours["state"], torch.get_rng_state().double())


@pytest.fixture
def config(manifest: Path, tmp_path: Path) -> TrainConfig:
    # dropout in the decoder alone: the encoders' generators are each process's own
    model = CARZeroConfig.tiny(width=32, depth=1, heads=2, layers=2, image_size=32, dropout=0.0)
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, dropout=0.1))
    (tmp_path / "model.json").write_text(model.to_json(), encoding="utf-8")
    return TrainConfig(
        manifest=str(manifest), out=str(tmp_path / "one"), model=str(tmp_path / "model.json"), steps=4, batch_size=7,
        learning_rate=1e-3, device="cpu", positives="report", texts_per_image=2,
    )  # fmt: skip


def torchrun(config: TrainConfig, out: Path, processes: int, *options: str) -> subprocess.CompletedProcess:
    settings = out.with_name(f"{out.name}.yaml")
    settings.write_text(to_yaml(dataclasses.replace(config, out=str(out))), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "-m", "carzero", "train", "--config", str(settings), *options], capture_output=True, text=True,
        timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((out / "metrics.csv").open())]


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_run_on_two_processes_is_the_run_on_one(
    config: TrainConfig, tmp_path: Path, sharding: str, labelled: Validation
) -> None:
    """Seven pairs on two processes, cut into parts of two: the same losses, scores and model, weights spread or not."""
    config = dataclasses.replace(config, validation=labelled)
    one = train(config, quiet=True)
    cut = dataclasses.replace(config, micro_batch=2, sharding=sharding, checkpoint_every=2)
    done = torchrun(cut, tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2; each holds 4 images of a step at most" in done.stdout
    assert done.stdout.count("wrote ") == 1
    assert losses(tmp_path / "two") == pytest.approx(one.losses, rel=1e-5)
    ours, theirs = (list(csv.reader((out / "validation.csv").open())) for out in (tmp_path / "two", one.out))
    assert [row[0] for row in ours] == ["step", "2", "4"]
    assert ours == theirs
    two = carzero.load(tmp_path / "two" / "model")
    for (name, a), b in zip(one.model.named_parameters(), two.parameters(), strict=True):
        # AdamW divides by the gradient's size, so a rounding difference in a tiny gradient is a step's
        assert float((a - b).detach().norm()) <= 1e-3 * float(a.detach().norm() + 1), name
    if sharding == "fsdp2":
        # a checkpoint is whole however its run was spread, and is spread again
        kept = checkpoints(tmp_path / "two")
        state = read_state(kept[0])
        moments = [entry["exp_avg"].shape for entry in state["optimizer"]["state"].values()]
        assert sorted(moments) == sorted(p.shape for p in one.model.parameters() if p.requires_grad)
        shutil.rmtree(kept[1])
        again = torchrun(cut, tmp_path / "two", 2, "--resume", "auto")
        assert again.returncode == 0, again.stderr[-3000:]
        assert "step 3/4" in again.stdout or "step 4/4" in again.stdout
        assert losses(tmp_path / "two") == pytest.approx(one.losses, rel=1e-5)


def test_processes_must_stay_as_many(config: TrainConfig, tmp_path: Path) -> None:
    done = torchrun(dataclasses.replace(config, checkpoint_every=2), tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.raises(carzero.errors.UserError, match="had 2 processes and is resumed with 1"):
        train(dataclasses.replace(config, out=str(tmp_path / "two"), checkpoint_every=2), resume=True, quiet=True)


def test_more_processes_than_pairs(manifest: Path, tmp_path: Path) -> None:
    from carzero.train.batches import PairStream

    config = TrainConfig(manifest=str(manifest), out=str(tmp_path), batch_size=3)
    with pytest.raises(carzero.errors.UserError, match="a batch of 3 pairs cannot be shared by 4 processes"):
        PairStream(config, Ranks(0, 4))
