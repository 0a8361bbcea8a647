"""Training from shards: the pixels and order of files, a kill in the middle of a shard, damage, object storage."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from carzero.cli import main
from carzero.data.images import ImageProcessor
from carzero.data.sharding import write_shards
from carzero.data.shards import ShardedPairs
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.train.batches import PairStream
from carzero.train.checkpoint import checkpoints
from carzero.train.config import TrainConfig
from carzero.train.loop import train
from carzero.train.options import to_yaml
from carzero.train.order import Shards, batch_indices
from carzero.train.ranks import Ranks

pytest.importorskip("litdata", reason="needs carzero[shards]")


@pytest.fixture
def shards(manifest: Path, tmp_path: Path) -> Path:
    """The dozen pairs, three images a shard, prepared for the model's 32 pixels."""
    assert write_shards(manifest, tmp_path / "shards", size=32, per_shard=3).shards == 4
    return tmp_path / "shards"


def stream_of(config: TrainConfig, ranks: Ranks | None = None) -> PairStream:
    stream = PairStream(config, ranks)
    stream.prepare_for(CARZero(CARZeroConfig.from_json(Path(config.model).read_text())))
    return stream


def losses(out: Path) -> list[str]:
    return [row["loss"] for row in csv.DictReader((out / "metrics.csv").open())]


def test_an_image_is_the_file_s_and_is_held_once(manifest: Path, tmp_path: Path) -> None:
    rows = manifest.read_text().splitlines()
    table = ["image,texts,split"]
    table += [f'{row.split(",")[0]},"[""{k} a"", ""{k} b""]",{"ab"[k % 2]}' for k, row in enumerate(rows[1:])]
    # one image again, with another text
    table += ['0.png,"[""again""]",a']
    manifest.write_text("\n".join(table))
    made = write_shards(manifest, tmp_path / "s", size=32, per_shard=5)
    assert (made.pairs, made.images, made.shards) == (13, 12, 3)
    pairs = ShardedPairs(str(tmp_path / "s"))
    processor = ImageProcessor(size=32)
    # in an order that goes back and forth between shards
    for index in (12, 0, 11, 5, 4, 6, 1):
        want = processor.square(manifest.parent / f"{index % 12}.png")[0]
        assert np.array_equal(pairs.square(index), want), index
    assert pairs.parts is not None
    assert pairs.parts[3] == ["3 a", "3 b"]
    assert pairs.shard_of.tolist() == [0] * 5 + [1] * 5 + [2] * 2 + [0]
    half = ShardedPairs(str(tmp_path / "s"), split="b")
    assert half.images == [f"{k}.png" for k in range(1, 12, 2)]
    assert np.array_equal(half.square(5), processor.square(manifest.parent / "11.png")[0])
    with pytest.raises(UserError, match="has no row of split 'c'; it has a, b"):
        ShardedPairs(str(tmp_path / "s"), split="c")


def test_a_step_touches_few_shards_and_an_epoch_sees_every_pair() -> None:
    random = np.random.default_rng(0)
    of = np.sort(random.integers(0, 20, 200))
    of[of == 7] = 8
    shards = Shards(of, mixed=4)
    epoch = [batch_indices(s, pairs=200, batch_size=10, seed=3, shards=shards) for s in range(20)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(200))
    # at the border of two groups a step touches both
    assert max(len(set(of[step].tolist())) for step in epoch) <= 8
    groups = [set(of[np.concatenate(epoch)[place : place + 1]].tolist()) for place in range(200)]
    first = list(dict.fromkeys(shard for group in groups for shard in group))
    assert len(first) == 19
    # a group is left before the next begins
    last = {shard: max(p for p in range(200) if shard in groups[p]) for shard in first}
    for start in range(0, 16, 4):
        later = min(p for p in range(200) if groups[p] & set(first[start + 4 :]))
        assert max(last[shard] for shard in first[start : start + 4]) < later
    again = batch_indices(25, pairs=200, batch_size=10, seed=3, shards=shards)
    assert set(again.tolist()) != set(epoch[5].tolist())
    # one group is the order without shards
    whole = Shards(of, mixed=19)
    for step in (0, 7, 33):
        plain = batch_indices(step, pairs=200, batch_size=10, seed=3)
        assert np.array_equal(batch_indices(step, pairs=200, batch_size=10, seed=3, shards=whole), plain)


def test_a_run_on_files_goes_on_from_shards_bit_for_bit(config: TrainConfig, shards: Path) -> None:
    whole = train(config, quiet=True)
    other = dataclasses.replace(config, out=f"{config.out}2", checkpoint_every=2)
    train(other, quiet=True)
    shutil.rmtree(checkpoints(Path(other.out))[-1])
    moved = dataclasses.replace(other, manifest=str(shards), workers=1)
    rest = train(moved, resume=True, quiet=True)
    assert rest.losses == whole.losses[4:]
    for (name, a), b in zip(whole.model.named_parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    # two shards at a time is another order
    with pytest.raises(UserError, match="or lie in other shards"):
        train(dataclasses.replace(moved, shuffle_shards=2), resume=True, quiet=True)
    table = Path(config.manifest)
    table.write_text(table.read_text().replace("nodule", "mass"))
    with pytest.raises(UserError, match=r"but those of .* are others, or lie in other shards"):
        train(other, resume=True, quiet=True)


@pytest.mark.parametrize(
    "remote", [pytest.param(False, marks=pytest.mark.slow, id="folder"), pytest.param(True, id="fetched")]
)
def test_killed_in_the_middle_of_a_shard_a_run_goes_on_to_the_same_bits(
    config: TrainConfig, shards: Path, tmp_path: Path, remote: bool
) -> None:
    """kill -9, other readers after it; steps of two pairs and shards of three, so a step begins inside a shard."""
    where: dict = {"manifest": str(shards)}
    if remote:
        where = {"manifest": f"local:{shards}", "cache_folder": str(tmp_path / "kept")}
    run = dataclasses.replace(config, batch_size=2, steps=20, checkpoint_every=1, shuffle_shards=1, **where)
    stream = stream_of(run)
    order = np.concatenate([stream._indices(step) for step in range(6)])
    of = stream.pairs.shard_of[order]  # type: ignore[union-attr]
    assert any(of[2 * step - 1] == of[2 * step] for step in range(1, 6))
    settings = tmp_path / "settings.yaml"
    settings.write_text(to_yaml(run), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "carzero", "train", "--config", str(settings), "--workers", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    metrics = Path(run.out) / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        time.sleep(0.01)
    # the readers too, as when a node goes
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(losses(Path(run.out))) < 20
    train(run, resume=True, quiet=True)
    if remote:
        shutil.rmtree(shards)
    whole = train(dataclasses.replace(run, out=str(tmp_path / "whole")), quiet=True)
    assert losses(Path(run.out)) == losses(whole.out)
    ours = Path(run.out, "model", "model.safetensors")
    from safetensors.torch import load_file

    for name, tensor in load_file(whole.out / "model" / "model.safetensors").items():
        assert torch.equal(load_file(ours)[name], tensor), name


def test_processes_read_their_shares_of_the_same_batch(config: TrainConfig, shards: Path) -> None:
    run = dataclasses.replace(config, manifest=str(shards), shuffle_shards=2)
    whole = stream_of(run)[3]
    parts = [stream_of(run, Ranks(rank, 2))[3] for rank in range(2)]
    assert torch.equal(torch.cat([part.views for part in parts]), whole.views)
    assert [text for part in parts for text in part.texts] == whole.texts
    assert "4 shards of prepared images, 2 mixed at a time" in stream_of(run).describe()


def damage(shards: Path, how: str) -> None:
    chunk = sorted(shards.glob("chunk-*"))[0]
    content = bytearray(chunk.read_bytes())
    if how == "a byte":
        # inside the last image of the shard
        content[content.rfind(b"IDAT") + 10] ^= 1
    elif how == "cut":
        content = content[: len(content) // 2]
    elif how == "gone":
        chunk.unlink()
        return
    chunk.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("a byte", "is not what was written: fetch or write the shard again"),
        ("cut", "cannot be read from|is not what was written"),
        ("gone", "cannot be read from .* No such file"),
    ],
)
def test_damage_is_named(shards: Path, how: str, sentence: str) -> None:
    damage(shards, how)
    pairs = ShardedPairs(str(shards))
    # the last image of the first shard
    with pytest.raises(UserError, match=sentence):
        pairs.square(2)
    pairs.square(3)


def test_a_damaged_shard_ends_a_run_with_a_checkpoint(config: TrainConfig, shards: Path) -> None:
    damage(shards, "a byte")
    run = dataclasses.replace(config, manifest=str(shards), batch_size=1, steps=12, epochs=1)
    with pytest.raises(UserError, match=r"step \d+ cannot be read. train: .*2.png in .* is not what was written"):
        train(run, quiet=True)
    done = len(losses(Path(run.out)))
    assert 0 < done < 12
    assert [c.name for c in checkpoints(Path(run.out))] == [f"step-{done:06d}"]


def test_what_cannot_be_is_a_sentence(config: TrainConfig, manifest: Path, shards: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(config, manifest=str(shards))
    with pytest.raises(UserError, match="prepared images: leave cache out"):
        PairStream(dataclasses.replace(run, cache=True))
    with pytest.raises(UserError, match="read where they are: leave cache_folder out"):
        PairStream(dataclasses.replace(run, cache_folder=str(tmp_path)))
    with pytest.raises(UserError, match="name a local cache_folder"):
        PairStream(dataclasses.replace(run, manifest="s3://bucket/set"))
    with pytest.raises(UserError, match="holds no shards"):
        PairStream(dataclasses.replace(run, manifest=str(tmp_path)))
    absent = dataclasses.replace(run, manifest=f"local:{tmp_path / 'absent'}", cache_folder=str(tmp_path / "kept"))
    with pytest.raises(UserError, match=r"absent/shards.json cannot be fetched: FileNotFoundError"):
        PairStream(absent)
    wide = tmp_path / "wide"
    write_shards(manifest, wide, size=48)
    with pytest.raises(UserError, match=r"input of 48 pixels, and this model takes 32: .*data shard --size 32"):
        stream_of(dataclasses.replace(run, manifest=str(wide)))
    about = wide / "shards.json"
    about.write_text(about.read_text().replace('"images": 12', '"images": 13'))
    with pytest.raises(UserError, match="hold 12 images and should hold 13"):
        ShardedPairs(str(wide))
    about.write_text('{"format": 2}')
    with pytest.raises(UserError, match="format 2, this version reads format 1"):
        ShardedPairs(str(wide))


def test_command_writes_shards_and_leaves_none_where_an_image_is_broken(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "made"
    words = ["data", "shard", str(manifest), "--out", str(out), "--size", "32", "--per-shard", "5", "--workers", "1"]
    assert main(words) == 0
    assert "12 pairs with 12 images of 32 pixels in 3 shards, 0.0 MiB" in capsys.readouterr().out
    assert pd.read_parquet(out / "pairs.parquet")["item"].tolist() == list(range(12))
    assert main(words) == 2
    assert "exists already: name a new folder" in capsys.readouterr().err
    (manifest.parent / "7.png").write_bytes(b"no image")
    words[4] = str(tmp_path / "broken")
    for workers in ("0", "1"):
        assert main([*words[:-1], workers]) == 2
        said = capsys.readouterr().err
        assert "7.png" in said
        assert "`carzero data check` finds all such files" in said
    assert not list(tmp_path.glob("*broken*"))
