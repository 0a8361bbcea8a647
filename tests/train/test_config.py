"""A run's settings: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carzero.errors import UserError
from carzero.train.config import TrainConfig, read_config


def test_strings_become_the_fields_types() -> None:
    config = TrainConfig.from_mapping(
        {"manifest": "m.csv", "out": "o", "batch_size": "8", "betas": "0.9,0.98", "augment": "crop", "steps": "1e3"}
    )
    assert (config.batch_size, config.betas, config.augment, config.steps) == (8, (0.9, 0.98), "crop", 1000)


def test_as_dict_reads_back_equal() -> None:
    config = TrainConfig("m.csv", "o", steps=7, betas=(0.9, 0.95), init="w")
    assert TrainConfig.from_mapping(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batchsize": 8}, r"unknown key 'batchsize'. Did you mean 'batch_size'\? Known: manifest, out"),
        ({"positives": "reports"}, r"unknown positives 'reports'. Did you mean 'report'\?"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be int, got 'many'"),
        ({"batch_size": 1.5}, "batch_size must be int, got 1.5"),
        ({"learning_rate": "nan"}, "learning_rate must be positive and finite, got nan"),
        ({"warmup": 1}, r"must lie in \[0, 1\), got 1.0"),
        ({"betas": [0.9]}, r"betas must be two numbers in \[0, 1\)"),
        ({"augment": "crops"}, r"unknown augment 'crops'. Did you mean 'crop'\?"),
        ({"cache": "yes"}, "cache must be bool, got 'yes'"),
        ({"text": "report", "texts_per_image": 2}, "it needs texts_per_image 1, got 2"),
        ({"texts_per_image": 0}, "texts_per_image must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_sentences(values: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainConfig.from_mapping({"manifest": "m.csv", "out": "o", **values})


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
