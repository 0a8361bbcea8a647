"""The public benchmarks, each a small file: which labels, classes and prompts, and what others reached."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from carzero.errors import UserError
from carzero.evaluate.label_files import READERS, only_listed
from carzero.evaluate.tables import Labels

#: How far from a published figure of three digits a checkpoint may be, and still be the published one.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Reference:
    """What somebody reported.

    Args:
        model: name.
        figure: key of the JSON report: ``macro_auroc``, ``groups.tail.auroc``.
        value: as printed.
        source: where.
    """

    model: str
    figure: str
    value: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; its YAML file has these fields, and no others.

    Args:
        name: of the file.
        title: what it is and which list of images; stands in every table.
        reader: of its label file, a key of `carzero.evaluate.label_files.READERS`.
        labels: what that file is called and looks like.
        prompts: name for `carzero.prompts.prompt_set`, or the path of a prompt file beside the YAML file.
        images: how many there should be; None: not known.
        classes: as the label file spells them; empty: every label of the file.
        leave_out: labels that are no class.
        subset: ``tail``: the classes with 10 or fewer positives alone.
        pool: of several prompts of a class.
        references: figures of the literature.
    """

    name: str
    title: str
    reader: str
    labels: str
    prompts: str
    images: int | None = None
    classes: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    subset: str | None = None
    pool: str = "mean"
    references: tuple[Reference, ...] = ()

    def read_labels(self, path: str | os.PathLike[str], listed: str | os.PathLike[str] | None = None) -> Labels:
        """Read its label file, and keep the images of a list where one is given."""
        labels = READERS[self.reader](Path(path), self.classes)
        if self.leave_out and labels.classes:
            kept = tuple(name for name in labels.classes if name not in self.leave_out)
            table = labels.table.drop(columns=[c for c in labels.table.columns if c in self.leave_out])
            labels = Labels(labels.source, labels.images, table, labels.patient, labels.study, kept)
        return labels if listed is None else only_listed(labels, listed)

    def other_images(self, count: int) -> str | None:
        """A sentence where the number of images is not the benchmark's."""
        if self.images is None or count == self.images:
            return None
        return (
            f"{count:,} images were measured where {self.name} has {self.images:,}: "
            "do not put the figures beside published ones."
        )


def names() -> list[str]:
    """Names of the benchmarks that come with the package."""
    folder = resources.files("carzero.evaluate") / "benchmarks"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_benchmark(name: str | os.PathLike[str]) -> Benchmark:
    """A benchmark by name, or from one's own YAML file of the same form.

    Raises:
        UserError: there is none, or its file has an unknown, missing or wrong field.
    """
    text = os.fspath(name)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise UserError(f"The benchmark file {path} does not exist.")
        return _parse(path.stem, path.read_text(encoding="utf-8"), path)
    known = names()
    if text not in known:
        near = difflib.get_close_matches(text, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"There is no benchmark {text!r}.{hint} Known: {', '.join(known)}; or give a .yaml file.")
    file = resources.files("carzero.evaluate") / "benchmarks" / f"{text}.yaml"
    return _parse(text, file.read_text(encoding="utf-8"), None)


def _parse(name: str, text: str, path: Path | None) -> Benchmark:
    where = f"The benchmark file {path or name}"
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold fields.")
    allowed = {field.name for field in fields(Benchmark)} - {"name"}
    unknown, missing = set(content) - allowed, {"title", "reader", "labels", "prompts"} - set(content)
    if unknown or missing:
        raise UserError(
            f"{where} {'has the unknown field' if unknown else 'lacks the field'} {sorted(unknown or missing)[0]!r}."
        )
    if content["reader"] not in READERS:
        raise UserError(f"{where} names the reader {content['reader']!r}; known: {', '.join(READERS)}.")
    if content.get("subset") not in (None, "tail"):
        raise UserError(f"{where} has the subset {content['subset']!r}; only tail is known.")
    try:
        references = tuple(Reference(**entry) for entry in content.pop("references", None) or ())
    except TypeError as error:
        raise UserError(f"{where} has a wrong reference: {error}.") from None
    for field in ("classes", "leave_out"):
        content[field] = tuple(str(entry) for entry in content.get(field) or ())
    if path and (path.parent / content["prompts"]).is_file():
        content["prompts"] = str(path.parent / content["prompts"])
    return Benchmark(name=name, references=references, **content)
