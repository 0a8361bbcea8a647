"""Tables, plots, page and trackers of a run, and its zero-shot validation against scikit-learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import carzero
from carzero.errors import UserError
from carzero.train.config import TrainConfig, Validation
from carzero.train.loop import train
from carzero.train.ranks import Ranks
from carzero.train.validate import Validator


def test_validation_is_scikit_learn_s_auroc_and_changes_nothing(
    config: TrainConfig, labelled: Validation, tmp_path: Path
) -> None:
    whole = train(dataclasses.replace(config, out=str(tmp_path / "plain")), quiet=True)
    watched = dataclasses.replace(config, validation=labelled, trackers=["tensorboard"])
    result = train(watched, quiet=True)
    assert result.losses == whole.losses
    table = pd.read_csv(result.out / "validation.csv")
    assert table["step"].tolist() == [2, 4, 6]
    # by hand, from the saved model
    model = carzero.load(result.out / "model")
    labels = pd.read_csv(labelled.manifest)
    pixels = torch.stack([carzero.ImageProcessor(size=32)(Path(labelled.manifest).parent / n) for n in labels["image"]])
    scores = model.similarity(pixels, ["There is effusion", "Effusion", "There is a nodule"]).numpy()
    known = labels["nodule"].notna()
    assert table["effusion"].iloc[-1] == pytest.approx(
        roc_auc_score(labels["effusion"], scores[:, :2].mean(1)), abs=1e-6
    )
    assert table["nodule"].iloc[-1] == pytest.approx(roc_auc_score(labels["nodule"][known], scores[known, 2]), abs=1e-6)
    np.testing.assert_allclose(table["macro"], table[["effusion", "nodule"]].mean(axis=1), atol=1e-6)
    # the folder
    metrics = pd.read_csv(result.out / "metrics.csv")
    assert list(metrics.columns) == [
        "step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "data_wait", "peak_mib",
    ]  # fmt: skip
    assert metrics["data_wait"].between(0, 1).all()
    assert (metrics["peak_mib"] > 50).all()
    page = (result.out / "summary.html").read_text()
    for words in (
        "run: finished",
        "6 of 6",
        "zero-shot AUROC",
        "micro_batch: null",
        "plots/loss.svg",
        "plots/auroc.svg",
    ):
        assert words.lower() in page.lower(), words
    assert all((result.out / "plots" / f"{n}.svg").stat().st_size > 1000 for n in ("loss", "lr", "grad_norm", "auroc"))
    assert list(result.out.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("image,effusion\n0.png,1\n1.png,0\n", "lacks the column 'nodule'"),
        ("image,effusion,nodule\n0.png,1,1\n1.png,-1,0\n", "labels of 'effusion' other than 0, 1 and empty: -1"),
        ("image,effusion,nodule\n0.png,1,1\n1.png,1,0\n", "has no negative image of 'effusion'"),
        ("image,effusion,nodule\n0.png,1,1\nnone.png,0,0\n", "names 1 of 2 images that do not exist"),
    ],
)
def test_labels_that_cannot_be_scored_get_a_sentence(
    config: TrainConfig, labelled: Validation, labels: str, sentence: str
) -> None:
    Path(labelled.manifest).write_text(labels)
    with pytest.raises(UserError, match=sentence):
        train(dataclasses.replace(config, validation=labelled), quiet=True)


def test_a_split_of_a_labelled_table(labelled: Validation, config: TrainConfig) -> None:
    from carzero.models.config import CARZeroConfig

    path = Path(labelled.manifest)
    table = pd.read_csv(path)
    table["split"] = ["train"] * 4 + ["valid"] * 8
    table.to_csv(path, index=False)
    chosen = Validator(dataclasses.replace(labelled, split="valid"), CARZeroConfig.tiny(), Ranks())
    assert len(chosen.images) == 8
    assert chosen.describe() == f"8 images, 2 classes from {path}, every 2 steps"
