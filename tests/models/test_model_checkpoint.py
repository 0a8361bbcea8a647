"""Opening and writing models: folders, the published layout, and files that must be refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from published_model import checkpoint_state, perturbed, published_similarity

import carzero
from carzero import CARZero, CARZeroConfig
from carzero.errors import UserError
from carzero.models import checkpoint
from carzero.models.pickled import read_tensors


@pytest.fixture
def wide(tokenizer) -> CARZero:
    """Published in all that leaves no trace in the weights: encoder heads of 64, 4 decoder heads, 97 pieces."""
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), width=128, depth=3, heads=2, max_tokens=97)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, heads=4))
    return perturbed(CARZero(config, tokenizer)).eval()


def same_weights(a: CARZero, b: CARZero) -> bool:
    return list(a.state_dict()) == list(b.state_dict()) and all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values())
    )


# our own folder


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_all_files_of_a_folder_follow_the_umask(model, tmp_path):
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "shared")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "shared").rglob("*") if file.is_file()} == {0o640}


def test_folder_round_trip_is_bit_identical(model, pixels, texts, tmp_path):
    want = model.similarity(pixels, texts)
    model.save_pretrained(tmp_path / "new" / "folder")
    found = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert found == ["config.json", "model.safetensors", "tokenizer"]
    for opened in (
        carzero.load(tmp_path / "new" / "folder"),
        CARZero.from_pretrained(str(tmp_path / "new" / "folder")),
    ):
        assert opened.config == model.config
        assert not opened.training
        assert same_weights(opened, model)
        assert torch.equal(opened.similarity(pixels, texts), want)


def test_opened_weights_can_be_trained_and_saved_over(model, pixels, texts, tmp_path):
    """The file is mapped: writing to the weights must not reach it, and replacing it must not reach the weights."""
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    opened = carzero.load(tmp_path)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"image_encoder.model.pos_embed"}
    assert {name for name, p in opened.named_parameters() if not p.requires_grad} == frozen
    with torch.no_grad():
        for parameter in opened.parameters():
            parameter.mul_(1.25)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    trained = opened.similarity(pixels, texts)
    opened.save_pretrained(tmp_path)
    assert torch.equal(opened.similarity(pixels, texts), trained)
    assert torch.equal(carzero.load(tmp_path).similarity(pixels, texts), trained)


def test_dtype_and_tokenizer_arguments(model, tmp_path, texts):
    model.save_pretrained(tmp_path)
    opened = carzero.load(tmp_path, dtype=torch.float64, tokenizer=tmp_path / "tokenizer")
    assert opened.dtype == torch.float64
    assert opened.encode_texts(texts).memory.dtype == torch.float64


def test_saving_keeps_other_files_and_leaves_no_rest(model, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "stale.txt").write_text("from another tokenizer")
    model.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "metrics.json", "model.safetensors", "tokenizer"]
    assert not (tmp_path / "tokenizer" / "stale.txt").exists()


def test_interrupted_saving_leaves_the_old_model(model, pixels, texts, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    want = model.similarity(pixels, texts)

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with torch.no_grad():
        model.decoder.norm.weight.mul_(2)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer"]
    assert torch.equal(carzero.load(tmp_path).similarity(pixels, texts), want)


def test_bad_folders_are_sentences(model, tmp_path):
    with pytest.raises(UserError, match=r"it lacks config.json and model.safetensors"):
        carzero.load(tmp_path)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"image_size"', '"imagesize"'))
    with pytest.raises(UserError, match=r"unknown key image\.'imagesize'; the nearest known is 'image_size'"):
        carzero.load(tmp_path)
    config.write_text(text.replace('"dropout": 0.1', '"dropout": 0.2'))
    with pytest.raises(UserError, match=r"config\.json is not the one that model\.safetensors was written with"):
        carzero.load(tmp_path)
    config.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        carzero.load(tmp_path)


def test_weights_of_another_shape_or_name(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "decoder.head.0.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"decoder.head.0.bias must have shape \(128,\), got \(3,\)"):
        carzero.load(tmp_path)
    del tensors["decoder.norm.bias"]
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 keys missing and 1 unknown; missing decoder.norm.bias; unknown extra"):
        carzero.load(tmp_path)


def test_missing_paths_and_hub_ids(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no folder or file '.*nowhere\.ckpt'"):
        carzero.load(tmp_path / "nowhere.ckpt")
    with pytest.raises(UserError, match=r"there is no folder or file 'weights/carzero\.ckpt'"):
        carzero.load("weights/carzero.ckpt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'some-one/some-model' is no folder here, and as a hub id it cannot be had"):
        carzero.load("some-one/some-model")


def test_hub_id_opens_the_downloaded_folder(model, tmp_path, monkeypatch, pixels, texts):
    model.save_pretrained(tmp_path)
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert torch.equal(carzero.load("some-one/some-model").similarity(pixels, texts), model.similarity(pixels, texts))
    assert asked == [("some-one/some-model", ["model.safetensors", "config.json", "tokenizer/*"])]


# the published layout


def test_published_layout_gives_identical_scores(wide, pixels, texts, tmp_path, caplog):
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": checkpoint_state(wide), "epoch": 3, "optimizer_states": [{"state": {}}]}, path)
    with caplog.at_level(logging.INFO, logger="carzero"):
        opened = carzero.load(path, tokenizer=wide.tokenizer)
    # two layers with 4 keys of self-attention and 2 of norm1 each, the scale, the pooler's 2, the index table
    values = 1 + 2 * (4 * 128 * 128 + 4 * 128 + 2 * 128) + 128 * 128 + 128 + 97
    assert f"dropped 16 dead keys ({values:,} values)" in caplog.text
    assert same_weights(opened, wide)
    want = wide.similarity(pixels, texts)
    assert torch.equal(opened.similarity(pixels, texts), want)
    torch.testing.assert_close(want, published_similarity(wide, pixels, texts), rtol=1e-4, atol=1e-5)


def test_published_layout_without_dead_keys_prefix_or_wrapper(wide, pixels, texts, tmp_path):
    state = {key.removeprefix("CARZero."): value for key, value in checkpoint_state(wide, dead=False).items()}
    torch.save(state, tmp_path / "bare.pt")
    opened = carzero.load(tmp_path / "bare.pt")
    assert opened.tokenizer is None
    opened.text_encoder.set_tokenizer(wide.tokenizer)
    assert torch.equal(opened.similarity(pixels, texts), wide.similarity(pixels, texts))


def test_half_precision_and_old_zip_less_files(wide, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in checkpoint_state(wide).items()}
    torch.save({"state_dict": half}, tmp_path / "half.ckpt")
    assert carzero.load(tmp_path / "half.ckpt").dtype == torch.float16
    assert carzero.load(tmp_path / "half.ckpt", dtype=torch.float32).dtype == torch.float32
    old = tmp_path / "old.ckpt"
    torch.save({"state_dict": checkpoint_state(wide)}, old, _use_new_zipfile_serialization=False)
    assert same_weights(carzero.load(old), wide)


def test_compressed_and_strided_records(wide, tmp_path):
    state = checkpoint_state(wide)
    key = "CARZero.fusion_module.decoder.layers.0.linear1.weight"
    state[key] = state[key].t().contiguous().t()
    torch.save({"state_dict": state}, tmp_path / "plain.ckpt")
    with zipfile.ZipFile(tmp_path / "plain.ckpt") as source, zipfile.ZipFile(tmp_path / "packed.ckpt", "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info), zipfile.ZIP_DEFLATED)
    for name in ("plain.ckpt", "packed.ckpt"):
        assert same_weights(carzero.load(tmp_path / name), wide)


def test_published_keys_are_strict(wide, tmp_path):
    path = tmp_path / "x.ckpt"

    def message(state) -> str:
        torch.save({"state_dict": state}, path)
        with pytest.raises(UserError) as error:
            carzero.load(path)
        return str(error.value)

    state = checkpoint_state(wide)
    assert "unknown key 'CARZero.projector.weight'" in message({**state, "CARZero.projector.weight": torch.zeros(1)})
    assert "unknown image_encoder.model.head.weight" in message(
        {**state, "CARZero.img_encoder.model.head.weight": torch.zeros(1)}
    )
    without = {key: value for key, value in state.items() if not key.endswith("blocks.1.norm2.bias")}
    assert "1 keys missing and 0 unknown; missing image_encoder.model.blocks.1.norm2.bias" in message(without)
    assert "not a published CARZero checkpoint" in message({"some.weight": torch.zeros(1)})
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state_dict of tensors"):
        carzero.load(path)


# files that would run code


class Payload:
    """What an attacker would write: unpickling it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_file_is_refused(wide, tmp_path, zipped):
    trace, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    content = {"state_dict": checkpoint_state(wide), "hyper_parameters": Payload(f"touch {trace}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.ckpt is refused: .*nothing was executed"):
        carzero.load(path)
    assert not trace.exists()
    if zipped:
        # the payload does work where nothing guards against it
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "subprocess Popen", "torch load", "torch._utils x"]
)
def test_globals_that_hold_no_weights_are_refused(tmp_path, name):
    path, (module, function) = tmp_path / "x.ckpt", name.split()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", f"c{module}\n{function}\n(S'1'\ntR.".encode())
    with pytest.raises(UserError, match=f"it asks for {module}.{function}"):
        read_tensors(path)


def test_functions_cannot_be_altered(tmp_path):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        # BUILD with a slot state would set an attribute of the function
        archive.writestr("x/data.pkl", b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'_function'\nI1\nstb.")
    with pytest.raises(UserError, match="it tries to set _function of a function"):
        read_tensors(path)


def _foreign_module(monkeypatch, name: str) -> types.ModuleType:
    module = types.ModuleType(name)

    class DictConfig(dict):
        def __init__(self, content):
            super().__init__(content)
            self.flags = {"readonly": True}

        def __reduce__(self):
            return DictConfig, ({},), {"_metadata": collections.defaultdict(list), "_content": dict(self)}

        def __setstate__(self, state):
            raise AssertionError("settings must not be rebuilt")

    DictConfig.__module__, DictConfig.__qualname__ = name, "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_settings_of_a_foreign_class_do_not_stand_in_the_way(wide, pixels, texts, tmp_path, monkeypatch):
    """OmegaConf settings are skipped without OmegaConf; the tensors are opened."""
    module = _foreign_module(monkeypatch, "omegaconf.dictconfig")
    settings = module.DictConfig({"model": module.DictConfig({"text": {"bert_type": "x"}}), "gpus": [0, 1]})
    path = tmp_path / "settings.ckpt"
    torch.save({"hyper_parameters": settings, "state_dict": checkpoint_state(wide)}, path)
    monkeypatch.delitem(sys.modules, "omegaconf.dictconfig")
    opened = carzero.load(path, tokenizer=wide.tokenizer)
    assert torch.equal(opened.similarity(pixels, texts), wide.similarity(pixels, texts))


def test_other_foreign_classes_are_named(wide, tmp_path, monkeypatch):
    module = _foreign_module(monkeypatch, "someones.project")
    path = tmp_path / "foreign.ckpt"
    torch.save({"hyper_parameters": module.DictConfig({}), "state_dict": checkpoint_state(wide)}, path)
    with pytest.raises(UserError, match=r"asks for someones\.project\.DictConfig, .*save its state_dict alone"):
        carzero.load(path)


def test_damaged_files_are_sentences(wide, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": checkpoint_state(wide)}, path)
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], pickle.dumps({"a": 1}, protocol=4)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.ckpt (is|does|holds)"):
            carzero.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"without data\.pkl"):
        carzero.load(path)


def test_a_weights_file_of_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is one file of a model folder; give the folder"):
        carzero.load(tmp_path / "model.safetensors")


def test_unknown_unsaved_buffers_take_the_slow_way(monkeypatch, model, tmp_path, pixels, texts):
    """An encoder with a buffer that cannot be rebuilt on its own is built in full, to the same scores."""
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "_materialise_buffers", lambda model: False)
    assert torch.equal(carzero.load(tmp_path).similarity(pixels, texts), model.similarity(pixels, texts))


# carzero convert


def test_convert(wide, pixels, texts, tmp_path, capsys):
    from carzero.cli import main

    torch.save({"state_dict": checkpoint_state(wide)}, tmp_path / "published.ckpt")
    wide.tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "model"
    arguments = ["convert", str(tmp_path / "published.ckpt"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "dropped 16 dead keys" in printed
    assert str(out) in printed
    assert torch.equal(carzero.load(out).similarity(pixels, texts), wide.similarity(pixels, texts))
    assert main([*arguments, "--out", str(out), "--text-mode", "published"]) == 0
    assert json.loads((out / "config.json").read_text())["text_mode"] == "published"
    assert carzero.load(out).text_encoder.mode == "published"


def test_convert_errors_are_one_sentence(tmp_path, capsys):
    from carzero.cli import main

    code = main(["convert", str(tmp_path / "no.ckpt"), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "out")])
    assert code == 2
    assert "there is no file" in capsys.readouterr().err
