"""The pictures of the documentation are those that their script draws, and each stands on its page with a text."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"

#: picture -> the page that it explains
PAGES = {
    "design": "design.md", "kernels": "kernels.md", "cuda": "cuda.md", "training": "training.md",
    "prompts": "prompts.md", "grounding": "grounding.md", "evaluation": "evaluation.md",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    return {picture.__name__: pictures.svg(picture) for picture in pictures.PICTURES}


def test_every_picture_has_a_page(drawn: dict[str, str]) -> None:
    assert set(drawn) == set(PAGES) == {path.stem for path in (DOCS / "images").glob("*.svg")}


@pytest.mark.parametrize("name", PAGES)
def test_picture_is_the_drawn_one_and_is_told_in_words(name: str, drawn: dict[str, str]) -> None:
    assert (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8") == drawn[name]
    root = ElementTree.fromstring(drawn[name])
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.attrib.get("x", 0)) + float(box.attrib["width"]) <= width
        assert float(box.attrib.get("y", 0)) + float(box.attrib["height"]) <= height
    (text,) = re.findall(rf"!\[(.+)\]\(images/{name}\.svg\)", (DOCS / PAGES[name]).read_text(encoding="utf-8"))
    assert len(text) > 40
