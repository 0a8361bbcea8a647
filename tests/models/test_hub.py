"""Model cards, the facts of a run, and the upload, against a hub of our own; `transformers.AutoModel`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import carzero
from carzero import CARZero
from carzero.errors import UserError
from carzero.models.hub import CardFacts, model_card
from carzero.train.card import card_facts, split_identity

MANIFEST = "image,text,split\na/2.png,There is effusion,train\nb/1.png,Clear lungs,train\nc/3.png,Clear,test\n"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A hub in a folder: repositories that were created, with the files that were uploaded."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo, *, private, exist_ok):
            (root / repo).mkdir(parents=True, exist_ok=exist_ok)
            (root / "private.json").write_text(json.dumps([repo, private, self.token]))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            assert revision is None
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return type("Commit", (), {"commit_url": f"hub://{repo_id}/{commit_message}"})

    def snapshot_download(repo, *, allow_patterns, **options):
        return str(root / repo)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return root


@pytest.fixture
def run(tmp_path) -> Path:
    """What a training run leaves, as far as a card reads it."""
    (tmp_path / "pairs.csv").write_text(MANIFEST)
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "manifest": str(tmp_path / "pairs.csv"),
        "split": "train",
        "steps": 7,
        "epochs": 15,
        "seed": 3,
        "batch_size": 64,
    }
    config["init"] = {"weights": None, "image": str(tmp_path / "private" / "vit.ckpt"), "text": "org/bert"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "validation.csv").write_text("step,effusion,macro\n5,0.5,0.5\n1000,0.75,0.8125\n")
    return folder


def front(card: str) -> dict:
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


def test_pushed_model_comes_back_equal(model, hub, run, pixels, texts):
    facts = card_facts(run, licence="cc-by-4.0")
    assert model.push_to_hub("org/chest", facts=facts, token="t", message="first") == "hub://org/chest/first"
    assert json.loads((hub / "private.json").read_text()) == ["org/chest", True, "t"]
    files = {p.name for p in (hub / "org" / "chest").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "tokenizer"}
    opened = carzero.load("org/chest")
    assert torch.equal(opened.similarity(pixels, texts), model.similarity(pixels, texts))
    card = (hub / "org" / "chest" / "README.md").read_text()
    assert 'carzero.load("org/chest")' in card
    assert front(card)["license"] == "cc-by-4.0"


def test_card_says_what_the_run_recorded(model, run):
    card = model_card(model, card_facts(run, limits=["Tested on drawn images only."]))
    digest = hashlib.sha256(b"1.png\n2.png\n").hexdigest()
    assert f"2 rows of split 'train'; SHA-256 of the sorted names {digest}" in card
    assert "the table pairs.csv" in card
    assert str(run.parent) not in card
    assert "init image vit.ckpt and text org/bert, steps 7, batch_size 64, seed 3" in card
    assert "| zero-shot AUROC, macro | 0.812 |" in card
    assert "at step 1,000" in card
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert "\n- Tested on drawn images only.\n" in card
    assert "Not a medical device" in card


def test_card_of_a_model_that_nothing_is_known_of(model):
    card = model_card(model)
    assert "license" not in front(card)
    for heading in ("data |", "split |", "settings |", "## Figures\n\n", "## Licence\n\n"):
        assert f"{heading}{' ' * heading.endswith('|')}not recorded" in card
    cell = model_card(model, CardFacts(training_data="a | b\n<script>"))
    assert "| data | a \\| b &lt;script> |" in cell


def test_card_of_an_evaluation(model, run, tmp_path):
    report = {
        "title": "Open-i", "macro_auroc": 0.8, "macro_auroc_ci": [0.7, 0.9],
        "accuracy": None, "accuracy_ci": [None, None],
        "micro_auroc": 0.5, "micro_auroc_ci": [None, None], "intervals": {"level": 0.95}, "n_images": 1234,
        "n_patients": None,
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    facts = card_facts(run, report=tmp_path)
    assert facts.figures == {"macro auroc": "0.800 (0.700 to 0.900)", "micro auroc": "0.500"}
    assert facts.measured_on == "Open-i: 1,234 images, patients not named; brackets are 95% intervals"
    assert "| macro auroc | 0.800 (0.700 to 0.900) |" in model_card(model, facts)
    with pytest.raises(UserError, match="is no report of carzero evaluate"):
        card_facts(run, report=run)


def test_split_identity_follows_the_images_alone(tmp_path):
    (tmp_path / "a.csv").write_text(MANIFEST)
    lines = MANIFEST.splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]).replace("Clear", "Other"))
    assert split_identity(tmp_path / "a.csv") == split_identity(tmp_path / "b.csv")
    assert split_identity(tmp_path / "a.csv", "test") != split_identity(tmp_path / "a.csv", "train")
    (tmp_path / "shards").mkdir()
    pd.read_csv(tmp_path / "a.csv").to_parquet(tmp_path / "shards" / "pairs.parquet")
    assert split_identity(tmp_path / "shards", "train") == split_identity(tmp_path / "a.csv", "train")
    (tmp_path / "c.csv").write_text("image,text\nx,y\n")
    with pytest.raises(UserError, match="no column split"):
        split_identity(tmp_path / "c.csv", "train")
    with pytest.raises(UserError, match="no row of split 'valid'; it has test, train"):
        split_identity(tmp_path / "a.csv", "valid")


def test_a_manifest_that_is_gone_is_not_recorded(model, run):
    (run.parent / "pairs.csv").unlink()
    facts = card_facts(run)
    assert facts.split is None
    assert "| split | not recorded |" in model_card(model, facts)
    with pytest.raises(UserError, match="is no folder of a run"):
        card_facts(run.parent)


def test_push_refuses_what_nobody_could_use(model, hub):
    with pytest.raises(UserError, match="no tokenizer"):
        CARZero(model.config).push_to_hub("org/chest")
    assert not hub.exists()


def test_a_hub_that_refuses_is_one_sentence(model, httpserver, monkeypatch):
    httpserver.expect_request("/api/repos/create", method="POST").respond_with_json({"error": "no rights"}, 403)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", httpserver.url_for("").rstrip("/"))
    with pytest.raises(UserError, match=r"push_to_hub: 'org/chest' was not written: .*403"):
        model.push_to_hub("org/chest", token="t")
    (sent,) = [request.get_json() for request, _ in httpserver.log if request.method == "POST"]
    assert (sent["organization"], sent["name"]) == ("org", "chest")
    assert sent.get("visibility") == "private" or sent["private"] is True
    with pytest.raises(UserError, match="was not written"):
        model.push_to_hub("not/an/id", token="t")


# transformers


@pytest.fixture
def auto():
    import carzero.models.auto as auto

    return auto


def test_auto_model_gives_the_same_logits(model, auto, tmp_path, pixels, texts):
    from transformers import AutoConfig, AutoModel

    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.carzero == model.config
    opened = AutoModel.from_pretrained(tmp_path)
    assert type(opened) is CARZero
    for got, want in zip(opened.logits(pixels, texts), model.logits(pixels, texts)):
        assert torch.equal(got, want)
    assert AutoModel.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert AutoModel.from_config(config).config == model.config
    auto.register()


def test_auto_model_from_the_hub(model, auto, hub, pixels, texts, monkeypatch):
    from transformers import AutoConfig, AutoModel

    model.push_to_hub("org/chest")
    config = AutoConfig.from_pretrained(hub / "org" / "chest")
    opened = AutoModel.from_pretrained("org/chest", config=config)
    assert torch.equal(opened.similarity(pixels, texts), model.similarity(pixels, texts))


def test_auto_model_says_what_it_cannot(model, auto, tmp_path):
    from transformers import AutoModel

    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="do not take device_map"):
        AutoModel.from_pretrained(tmp_path, device_map="auto")
    with pytest.raises(UserError, match="dtype 'float31' is unknown"):
        auto.CARZeroAutoModel.from_pretrained(tmp_path, dtype="float31")
    other = dataclasses.replace(model.config, text_mode="published")
    with pytest.raises(UserError, match="is not that of"):
        auto.CARZeroAutoModel.from_pretrained(tmp_path, config=auto.CARZeroAutoConfig(**other.to_dict()))


def test_folders_of_older_versions_and_of_other_models(model, tmp_path):
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("model_type") == "carzero"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert carzero.load(tmp_path).config == model.config
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **values}))
    with pytest.raises(UserError, match="model_type must be 'carzero', got 'bert'"):
        carzero.load(tmp_path)


def test_without_the_import_transformers_does_not_know_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    folder = tmp_path.rename(tmp_path.parent / "chest")  # transformers looks for known names in the path as well
    code = f"import carzero, transformers; transformers.AutoConfig.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model type `carzero`" in done.stderr
