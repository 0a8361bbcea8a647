"""Sharing a model on the Hugging Face hub: its card, written from what is recorded, and the upload."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carzero.errors import UserError

if TYPE_CHECKING:
    from .carzero import CARZero

#: What the card says of a fact that nothing records.
UNKNOWN = "not recorded"

# settings of a run that a reader of its card asks for
_SETTINGS = (
    "init", "epochs", "steps", "batch_size", "optimizer", "learning_rate", "weight_decay", "text", "positives",
    "augment", "flip", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """What a model card says beyond what the model tells of itself; None and empty read "not recorded".

    Args:
        licence: of the weights, as the hub names it (``"cc-by-4.0"``).
        training_data: what the model was trained on, in a sentence.
        split: which rows of it, so that others can tell whether their test images are among them.
        settings: how it was trained.
        figures: name to value, as printed.
        measured_on: what the figures are of.
        limits: sentences beside those that every card has.
    """

    licence: str | None = None
    training_data: str | None = None
    split: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    measured_on: str | None = None
    limits: Sequence[str] = ()

    @classmethod
    def of_run(cls, run: str | Path, *, report: str | Path | None = None, **given: Any) -> CardFacts:
        """What a run of ``carzero train`` and a report of ``carzero evaluate`` record.

        Args:
            run: the run's folder: ``config.yaml``, and ``validation.csv`` where no report is given. The manifest is
                read once more where it still lies where the run read it; of its path only the last part is kept.
            report: folder with the report's ``metrics.json``.
            given: fields to set otherwise.

        Raises:
            UserError: there is no run or report, or it cannot be read.
        """
        import yaml

        path = Path(run) / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            manifest, split = Path(config["manifest"]), config.get("split")
        except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
            raise UserError(f"CardFacts: {run} is no folder of a run: {path} cannot be read ({error}).") from error
        facts: dict[str, Any] = {
            "training_data": f"the {'shards' if manifest.is_dir() else 'table'} {manifest.name}",
            # the table as it is now, which a run does not keep
            "split": split_identity(manifest, split) if manifest.exists() else None,
            "settings": _settings(config),
        }
        facts |= _validated(Path(run)) if report is None else _reported(Path(report))
        return cls(**{**facts, **given})


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its card lists; where steps are given, epochs were not read."""
    found = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    found["init"] = _start(config.get("init") or {})
    if "steps" in found:
        found.pop("epochs", None)
    return found


def _start(init: Mapping[str, str | None]) -> str:
    """What a run started from, without the folders of the machine it ran on."""
    named = [f"{part} {source if _is_id(source) else Path(source).name}" for part, source in init.items() if source]
    return " and ".join(named) or "random weights"


def _is_id(source: str) -> bool:
    return not source.startswith("/") and source.count("/") <= 1 and not Path(source).exists()


def split_identity(manifest: str | Path, split: str | None = None) -> str:
    """How many rows a manifest's split has, and a digest of their images: equal for equal lists, whatever the order.

    Equal to SHA-256 of the sorted column `image` (file names, not paths), a line each. A folder of shards holds its
    manifest as ``pairs.parquet``.

    Raises:
        UserError: the table cannot be read, or has no column image (or split, where one is named).
    """
    import pandas as pd

    manifest = Path(manifest)
    manifest = manifest / "pairs.parquet" if manifest.is_dir() else manifest
    try:
        table = pd.read_parquet(manifest) if manifest.suffix == ".parquet" else pd.read_csv(manifest, dtype=str)
    except (OSError, ValueError) as error:
        raise UserError(f"split_identity: {manifest} cannot be read ({error}).") from error
    needed = {"image"} if split is None else {"image", "split"}
    if needed - set(table.columns):
        raise UserError(f"split_identity: {manifest} has no column {', '.join(sorted(needed - set(table.columns)))}.")
    if split is not None:
        table = table[table["split"] == split]
    names = sorted(Path(str(image)).name for image in table["image"])
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    return f"{len(names):,} rows{'' if split is None else f' of split {split!r}'}; SHA-256 of the sorted names {digest}"


def _validated(run: Path) -> dict[str, Any]:
    import pandas as pd

    path = run / "validation.csv"
    if not path.is_file():
        return {}
    last = pd.read_csv(path).iloc[-1]
    figures = {f"zero-shot AUROC, {name}": f"{value:.3f}" for name, value in last.drop("step").items()}
    return {"figures": figures, "measured_on": f"the run's own validation set, at step {int(last['step']):,}"}


def _reported(report: Path) -> dict[str, Any]:
    path = report / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        means = {name: (found[name], found[f"{name}_ci"]) for name in found if f"{name}_ci" in found}
        level = found["intervals"]["level"]
        images, patients, title = found["n_images"], found["n_patients"], found["title"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"CardFacts: {report} is no report of carzero evaluate: {path} ({error}).") from error
    figures = {
        name.replace("_", " "): f"{value:.3f} ({low:.3f} to {high:.3f})" if low is not None else f"{value:.3f}"
        for name, (value, (low, high)) in means.items()
        if value is not None
    }
    of = "patients not named" if patients is None else f"{patients:,} patients"
    return {"figures": figures, "measured_on": f"{title}: {images:,} images, {of}; brackets are {level:.0%} intervals"}


def model_card(model: CARZero, facts: CardFacts | None = None, *, repo: str = "ORG/NAME") -> str:
    """The text of a model's ``README.md`` on the hub.

    Args:
        model: its configuration and size are stated.
        facts: None is a card on which nothing is recorded.
        repo: the id that the example opens.

    Returns:
        Markdown below the hub's YAML block.
    """
    from huggingface_hub import ModelCardData

    facts = CardFacts() if facts is None else facts
    data = ModelCardData(
        license=facts.licence,
        library_name="carzero",
        pipeline_tag="zero-shot-image-classification",
        language="en",
        tags=["radiology", "chest-x-ray", "vision-language"],
    )
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    image, text = config.image, config.text
    settings = ", ".join(f"{name} {value}" for name, value in facts.settings.items())
    figures = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.figures.items())
    measured = (
        f"| figure | value |\n|---|---:|\n{figures}\n\nOf {facts.measured_on or UNKNOWN}." if figures else UNKNOWN
    )
    limits = "\n".join(f"- {sentence}" for sentence in facts.limits)
    return f"""---
{data.to_yaml()}
---

# {repo.split("/")[-1]}

Scores chest radiographs against findings written as text. **Not a medical device**: for research, not for the care of
patients.

```python
import carzero

model = carzero.load("{repo}")
pixels = carzero.ImageProcessor({image.image_size})("chest.png")[None]
model.similarity(pixels, ["There is pneumonia", "There is no pneumonia"])  # raw logits, no probabilities
```

## Model

| | |
|---|---|
| similarity | {config.similarity} |
| image encoder | {image.name}, {image.image_size} x {image.image_size} pixels |
| text encoder | {text.model_type}, {text.depth} layers, {text.max_tokens} word pieces, cleaning "{config.text_mode}" |
| parameters | {parameters:,} |

## Training

| | |
|---|---|
| data | {_cell(facts.training_data)} |
| split | {_cell(facts.split)} |
| settings | {_cell(settings or None)} |

## Figures

{measured}

## Intended use

Research on zero-shot classification, retrieval and grounding with adult frontal chest radiographs.

## Limits

- Scores are raw logits, comparable between images for one text; they are no probabilities and have no threshold.
- Lateral views, children, other modalities and findings that the training texts do not name were not looked at, unless
  the figures above say so.
- Such models can ignore negation, laterality and wording; `carzero evaluate --negation --laterality --wording`
  measures it.
- Attention maps show where the decoder looked; they are not segmentations.
{limits}
## Licence

{facts.licence or UNKNOWN}
"""


def _cell(value: str | None) -> str:
    """Text inside a table."""
    return UNKNOWN if value is None else str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def push(
    model: CARZero,
    repo: str,
    *,
    facts: CardFacts | None,
    private: bool,
    token: str | bool | None,
    revision: str | None,
    message: str,
) -> str:
    """See `CARZero.push_to_hub`, which has the defaults."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if model.tokenizer is None:
        raise UserError(
            f"push_to_hub: this model has no tokenizer, so nobody could use {repo}; set one with "
            "carzero.load(path, tokenizer=...)."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(model, facts, repo=repo), encoding="utf-8")
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=message)
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"push_to_hub: {repo!r} was not written: {reason}") from error
    return commit.commit_url
