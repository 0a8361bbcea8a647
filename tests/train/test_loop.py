"""The loop: it learns, repeats itself, goes on where it was stopped, and stops where it must."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import carzero
from carzero.cli import main
from carzero.errors import UserError
from carzero.models.config import CARZeroConfig
from carzero.train.batches import PairStream
from carzero.train.checkpoint import checkpoints
from carzero.train.config import TrainConfig
from carzero.train.loop import train
from carzero.train.loss import contrastive_loss, positive_pairs
from carzero.train.options import read_config
from carzero.train.order import batch_indices, dropout_seed
from carzero.train.reader import Reader
from carzero.train.sentences import sentences
from carzero.train.start import build_model


def test_same_seed_same_losses_and_another_seed_others(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config, quiet=True)
    again = train(dataclasses.replace(config, out=str(tmp_path / "again"), cache=True), quiet=True)
    other = train(dataclasses.replace(config, out=str(tmp_path / "other"), seed=1), quiet=True)
    assert first.losses == again.losses
    assert first.losses != other.losses
    for a, b in zip(first.model.parameters(), again.model.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_resumed_run_has_the_same_losses_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config, quiet=True)
    # the schedule depends on the length of the run, so the run is cut by a signal and not by fewer steps
    part = dataclasses.replace(config, out=str(tmp_path / "part"), checkpoint_every=100)
    cut = _interrupted_after(part, 3)
    assert (cut.step, cut.signal) == (3, signal.SIGINT)
    assert not (tmp_path / "part" / "model").exists()
    rest = train(part, resume=True, quiet=True)
    assert cut.losses + rest.losses == whole.losses
    rows = list(csv.DictReader((tmp_path / "part" / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(r["loss"]) for r in rows] == pytest.approx(whole.losses, rel=1e-5)
    for a, b in zip(whole.model.parameters(), rest.model.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _interrupted_after(config: TrainConfig, step: int):
    from carzero.train import loop

    class Interrupting(loop.Log):
        def step(self, row, batch, eta):
            super().step(row, batch, eta)
            if row["step"] == step:
                os.kill(os.getpid(), signal.SIGINT)

    before, loop.Log = loop.Log, Interrupting
    try:
        return train(config, quiet=True)
    finally:
        loop.Log = before


def test_first_loss_and_step_are_the_written_out_ones(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, steps=1, warmup=0.0, schedule="constant", clip=0.0)
    stream = PairStream(plain)
    model, _ = build_model(plain, stream.texts)
    stream.prepare_for(model)
    batch = stream[0]
    torch.manual_seed(plain.seed)
    logits = model.train().logits(batch.pixels, batch.texts, seed=dropout_seed(plain.seed, 0))
    loss = contrastive_loss(*logits, positive_pairs(batch.said, batch.known))
    result = train(plain, quiet=True)
    assert result.losses == [pytest.approx(loss.item(), rel=1e-6)]
    loss.backward()
    weight, name = model.decoder.layers[0].linear1_weight, "decoder.layers.0.linear1_weight"
    # Adam's first step is the rate times the gradient's sign, whatever its size (eps 1e-8 aside)
    change = dict(result.model.named_parameters())[name] - weight
    clear = weight.grad.abs() > 1e-6
    torch.testing.assert_close(change[clear], -1e-3 * weight.grad.sign()[clear], rtol=2e-2, atol=1e-6)


def test_several_texts_for_each_image(config: TrainConfig) -> None:
    several = dataclasses.replace(config, texts_per_image=3, text="sentence")
    stream = PairStream(several)
    stream.prepare_for(carzero.CARZero(CARZeroConfig.from_json(Path(config.model).read_text())))
    batch = stream[0]
    assert (len(batch.pixels), len(batch.texts), len(batch.said), len(batch.known)) == (5, 15, 15, 5)
    for j, said in enumerate(batch.said):
        assert said <= batch.known[j // 3]
    # no sentence is drawn twice where the report has enough of them
    for i, known in enumerate(batch.known):
        assert len(set(batch.texts[3 * i : 3 * i + 3])) == min(3, len(known))
    result = train(dataclasses.replace(several, positives="diagonal"), quiet=True)
    assert result.step == 6
    # a model that tells nothing apart: rows spread over 3 of 15 texts, columns over 5 images
    assert result.losses[0] == pytest.approx(np.log(15) + np.log(5), rel=0.1)


def test_learns_a_dozen_pairs(config: TrainConfig, tmp_path: Path) -> None:
    """Without dropout it reaches the least loss there is: each of three reports stands with four of twelve images."""
    model = CARZeroConfig.tiny(width=32, depth=1, heads=2, layers=2, image_size=32, dropout=0.0)
    (tmp_path / "model.json").write_text(model.to_json(), encoding="utf-8")
    longer = dataclasses.replace(
        config, steps=50, batch_size=12, learning_rate=3e-3, augment="none", cache=True, text="report"
    )  # fmt: skip
    losses = train(longer, quiet=True).losses
    # from 2 ln 12, the loss of a model that tells nothing apart, to 2 ln 4
    assert losses[0] == pytest.approx(2 * np.log(12), rel=0.05)
    assert np.mean(losses[-5:]) == pytest.approx(2 * np.log(4), rel=0.01)


def test_model_folder_opens_to_the_same_scores(config: TrainConfig) -> None:
    result = train(config, quiet=True)
    model = carzero.load(Path(config.out) / "model")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["There is a nodule", "There is a left effusion"]
    torch.testing.assert_close(
        model.similarity(pixels, prompts), result.model.similarity(pixels, prompts), rtol=0, atol=0
    )
    assert TrainConfig.from_mapping(read_config(Path(config.out) / "config.yaml")) == config


def test_a_convolutional_stem_is_saved_with_its_running_statistics(config: TrainConfig, tmp_path: Path) -> None:
    made = CARZeroConfig.tiny(width=32, depth=1, heads=2, layers=1, image_size=32)
    conv = dataclasses.replace(made, image=dataclasses.replace(made.image, stem="conv"))
    (tmp_path / "conv.json").write_text(conv.to_json(), encoding="utf-8")
    trained = train(dataclasses.replace(config, model=str(tmp_path / "conv.json")), quiet=True).model
    opened = carzero.load(Path(config.out) / "model")
    stem = opened.image_encoder.model.patch_embed.proj
    assert stem[1].num_batches_tracked == 6
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        opened.similarity(pixels, ["A nodule"]), trained.similarity(pixels, ["A nodule"]), rtol=0, atol=0
    )


def test_infinite_loss_stops_with_a_sentence_and_keeps_the_checkpoint(config: TrainConfig) -> None:
    wild = dataclasses.replace(config, learning_rate=1e30, clip=0.0, checkpoint_every=1, steps=20)
    with pytest.raises(UserError, match=r"the loss is .*the newest checkpoint is .*Lower the learning rate"):
        train(wild, quiet=True)
    assert checkpoints(Path(wild.out))


def test_other_settings_do_not_resume_and_a_used_folder_is_kept(config: TrainConfig) -> None:
    train(config, quiet=True)
    with pytest.raises(UserError, match="already holds a run; go on with --resume"):
        train(config, quiet=True)
    with pytest.raises(UserError, match=r"learning_rate was 0\.001 and is now 0\.1"):
        train(dataclasses.replace(config, learning_rate=0.1), resume=True, quiet=True)
    with pytest.raises(UserError, match="no checkpoint to resume"):
        train(dataclasses.replace(config, out=config.out + "x"), resume=True, quiet=True)


def test_an_epoch_sees_no_pair_twice_and_reader_processes_change_nothing(config: TrainConfig) -> None:
    seen = np.concatenate([batch_indices(s, pairs=12, batch_size=5, seed=3) for s in (0, 1)])
    assert len(set(seen.tolist())) == 10
    stream = PairStream(config)
    stream.prepare_for(carzero.CARZero(CARZeroConfig.from_json(Path(config.model).read_text())))
    for alone, read in zip(Reader(stream, 0, 3, 0), Reader(stream, 0, 3, 2), strict=True):
        assert alone.texts == read.texts
        torch.testing.assert_close(alone.pixels, read.pixels, rtol=0, atol=0)


def test_sentences_keep_decimals_and_drop_enumeration() -> None:
    report = "1. A nodule of 1.5 cm.  2. No effusion!\nNormal heart"
    assert sentences(report) == ["A nodule of 1.5 cm.", "No effusion!", "Normal heart"]


def test_command_trains_from_a_file_and_options(config: TrainConfig, tmp_path: Path, capsys) -> None:
    settings = {k: v for k, v in config.as_dict().items() if k not in ("out", "steps")}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    out = tmp_path / "command"
    assert main(["train", "--config", str(tmp_path / "run.json"), "--out", str(out), "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "step 2/2" in printed
    assert f"wrote {out / 'model'}" in printed
    assert main(["train", "--manifest", str(tmp_path / "none.csv"), "--out", str(tmp_path / "x")]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_encoders_have_the_losses_of_plain_ones(config: TrainConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(config, steps=2)
    # another generator draws the dropout of compiled encoders, so there is none here
    model = CARZeroConfig.from_json(Path(config.model).read_text())
    still = dataclasses.replace(model, text=dataclasses.replace(model.text, dropout=0.0))
    Path(config.model).write_text(still.to_json(), encoding="utf-8")
    plain = train(dataclasses.replace(short, out=str(tmp_path / "plain")), quiet=True).losses
    compiled = train(dataclasses.replace(short, out=str(tmp_path / "compiled"), compile=True), quiet=True).losses
    assert compiled == pytest.approx(plain, rel=1e-4)
