"""Sharing a model on the Hugging Face hub: its card, written from what is recorded, and the upload."""

from __future__ import annotations

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
