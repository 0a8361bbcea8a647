"""A run's settings: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from carzero.errors import UserError
from carzero.train.config import Init, TrainConfig, Validation
from carzero.train.options import RECIPES, parse_command, read_config, to_yaml

PATHS = ["--manifest", "m.csv", "--out", "o"]


def test_words_become_the_fields_types() -> None:
    words = [
        "--batch-size",
        "8",
        "--betas=[0.9,0.98]",
        "--augment",
        "crop",
        "--learning_rate",
        "1e-3",
        "--init.image",
        "x",
    ]
    config = parse_command([*PATHS, *words]).config
    assert (config.batch_size, config.betas, config.augment) == (8, (0.9, 0.98), "crop")
    assert (config.learning_rate, config.init) == (1e-3, Init(image="x"))
    assert parse_command([*PATHS, "--betas", "0.8,0.9", "--trackers", "tensorboard"]).config.betas == (0.8, 0.9)
    assert parse_command([*PATHS, "--batch-size", "{0: 4, 3: 8}"]).config.batch_sizes == {0: 4, 3: 8}


def test_a_config_reads_back_equal() -> None:
    config = TrainConfig(
        "m.csv", "o", steps=7, betas=(0.9, 0.95), init=Init(weights="w"), batch_size={0: 4, 2: 8},
        validation=Validation("v.csv", "p.json", every=3), trackers=["tensorboard"],
    )  # fmt: skip
    assert TrainConfig.from_mapping(yaml.safe_load(to_yaml(config))) == config
    # JSON has no numbers as keys
    plain = TrainConfig("m.csv", "o", steps=7)
    assert TrainConfig.from_mapping(json.loads(json.dumps(plain.as_dict()))) == plain


def test_options_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("batch_size: 4\nclip: 2.0\ninit: {text: t}\nmanifest: a.csv\n")
    (tmp_path / "b.json").write_text('{"clip": 3.0, "init.image": "i"}')
    words = ["--config", str(tmp_path / "a.yaml"), "--out", "o", "--config", str(tmp_path / "b.json")]
    config = parse_command([*words, "--batch-size", "6"]).config
    assert (config.batch_size, config.clip, config.manifest) == (6, 3.0, "a.csv")
    assert config.init == Init(image="i", text="t")


def test_resume_and_print() -> None:
    assert parse_command(PATHS).resume is None
    assert parse_command([*PATHS, "--resume"]).resume == "must"
    assert parse_command([*PATHS, "--resume", "auto"]).resume == "auto"
    assert parse_command([*PATHS, "--print-config"]).print_config


def test_the_published_recipe_is_the_published_one() -> None:
    """Source: configs/mimic_pretrain_llm_dqn_wo_self_atten_mlp_gl.yaml of the authors, and the paper's section 4.1."""
    config = parse_command([*PATHS, "--config", "published"]).config
    assert (config.epochs, config.batch_sizes) == (15, {0: 64, 2: 128, 6: 256})
    assert (config.optimizer, config.learning_rate, config.betas, config.weight_decay) == (
        "adam", 5e-5, (0.5, 0.999), 1e-6,
    )  # fmt: skip
    assert (config.clip, config.precision, config.flip, config.flip_share) == (0.25, "float16", "image", 0.3)
    assert (config.text, config.positives, config.texts_per_image) == ("published", "diagonal", 1)
    assert config.init.text == "Laihaoran/BioClinicalMPBERT"


def test_every_recipe_is_a_whole_config_and_the_improved_one_mends() -> None:
    assert set(RECIPES) == {"published", "improved"}
    config = parse_command([*PATHS, "--config", "improved"]).config
    assert (config.flip, config.schedule, config.positives, config.optimizer) == ("none", "cosine", "report", "adamw")
    assert config.warmup > 0
    # an ablation is one option
    assert parse_command([*PATHS, "--config", "improved", "--positives", "diagonal"]).config.positives == "diagonal"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batchsize": 8}, r"unknown key 'batchsize'. Did you mean 'batch_size'\? Known: manifest, out"),
        ({"init": {"images": "x"}}, r"unknown key 'init.images'. Did you mean 'init.image'\?"),
        ({"init": "x"}, "init holds the keys init.weights, init.image, init.text, got 'x'"),
        ({"positives": "reports"}, r"unknown positives 'reports'. Did you mean 'report'\?"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be int or dict of int, int, got 'many'"),
        ({"batch_size": 1.5}, "batch_size must be int or dict of int, int, got 1.5"),
        ({"batch_size": {1: 4}}, "batch_size by epoch must begin at epoch 0"),
        ({"steps": 1.5}, "steps must be int, got 1.5"),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite, got -1.0"),
        ({"warmup": 1}, r"must lie in \[0, 1\), got 1"),
        ({"betas": [0.9]}, r"betas must be tuple of float, float, got \[0.9\]"),
        ({"betas": [0.9, 1.0]}, r"betas must be two numbers in \[0, 1\)"),
        ({"augment": "crops"}, r"unknown augment 'crops'. Did you mean 'crop'\?"),
        ({"cache": "perhaps"}, "cache must be bool, got 'perhaps'"),
        ({"cache": True, "cache_folder": "c"}, "give one of the two"),
        ({"text": "report", "texts_per_image": 2}, "it needs texts_per_image 1, got 2"),
        ({"texts_per_image": 0}, "texts_per_image must be at least 1, got 0"),
        ({"init": {"weights": "w", "text": "t"}}, "init.image and init.text must be left out"),
        ({"validation": {"manifest": "v.csv"}}, "validation.manifest and validation.prompts belong together"),
        ({"flip_share": 2}, r"flip_share must lie in \[0, 1\], got 2"),
    ],
)
def test_wrong_values_are_sentences(values: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainConfig.from_mapping({"manifest": "m.csv", "out": "o", **values})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batchsize", "8"], r"unknown option '--batchsize'. Did you mean '--batch_size'\?"),
        (["--batch-size", "x"], "batch_size must be int or dict of int, int, got 'x'"),
        (["--text=foo"], "unknown text 'foo'. Known: sentence, some, report, published"),
        (["--resume", "yes"], "resume"),
        (["m.csv"], "m.csv"),
    ],
)
def test_wrong_words_are_sentences(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_command([*PATHS, *words])


def test_missing_paths_are_named() -> None:
    with pytest.raises(UserError, match="manifest and out must be given"):
        TrainConfig.from_mapping({})


def test_reads_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"batch_size": 4, "betas": [0.9, 0.98]}')
    (tmp_path / "a.yaml").write_text("batch_size: 4\nbetas: [0.9, 0.98]\n")
    assert (
        read_config(tmp_path / "a.json") == read_config(tmp_path / "a.yaml") == {"batch_size": 4, "betas": [0.9, 0.98]}
    )
    (tmp_path / "b.yaml").write_text("batch_size: [")
    with pytest.raises(UserError, match="not valid JSON or YAML"):
        read_config(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="cannot read the config file"):
        read_config(tmp_path / "none.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(UserError, match="must hold keys and values, got list"):
        read_config(tmp_path / "c.json")
