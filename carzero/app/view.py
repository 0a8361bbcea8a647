"""The page's fragments of HTML; every value is escaped by the templates."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2

from carzero.app.asking import write_findings
from carzero.app.pictures import common_ceiling, layer_url, radiograph_url, shown_size
from carzero.app.radiograph import MAX_BYTES
from carzero.templates import templates

if TYPE_CHECKING:
    from carzero.app.desk import Desk, Reading
    from carzero.app.radiograph import Radiograph

#: Share of a map's maximum that its outlined regions reach, and how many are outlined.
THRESHOLD, MOST_REGIONS = 0.5, 3


def header(desk: Desk, *, local: bool) -> str:
    """Title, what the page is and is not, and where its data go."""
    return _render("header", local=local, reference=desk.reference, maps=desk.maps)


def footer() -> str:
    return _render("footer")


def empty_picture() -> str:
    return _render("empty", megabytes=MAX_BYTES // 2**20)


def empty_scores() -> str:
    return _render("nothing")


def alert(sentence: str) -> str:
    """A sentence that a screen reader says at once; nothing for an empty one."""
    return _render("alert", sentence=sentence) if sentence else ""


def picture(radiograph: Radiograph) -> str:
    """The radiograph before anything was asked."""
    return _render("picture", **_shot(radiograph), view=None)


def scores(reading: Reading, desk: Desk) -> str:
    """A button a finding; where all have quantiles the highest comes first, else the order is the one asked."""
    numbered = list(enumerate(reading.answers))
    ranked = all(one.quantile is not None for one in reading.answers)
    if ranked:
        numbered.sort(key=lambda pair: -(pair[1].quantile or 0.0))
    return _render(
        "scores", rows=numbered, ranked=ranked, notes=reading.notes, reference=desk.reference, maps=desk.maps,
        known=[write_findings([prompt]) for prompt in desk.known],
    )  # fmt: skip


def finding(reading: Reading, number: int) -> str:
    """The map of a finding that was looked at over the radiograph, and the finding against its denial."""
    statement, denied = reading.maps[number]
    ceiling = common_ceiling(statement, denied)
    views = [("statement", statement)] + ([("denial", denied)] if denied is not None else [])
    view = {
        "answer": reading.answers[number],
        "ceiling": ceiling,
        "layers": [
            {
                "name": name,
                "url": layer_url(one, ceiling),
                "peak": [round(v) for v in one.peak],
                "boxes": [region.box for region in one.regions(THRESHOLD)[:MOST_REGIONS]],
            }
            for name, one in views
        ],
    }
    return _render("picture", **_shot(reading.radiograph), view=view)


def scores_only(reading: Reading, number: int) -> str:
    """`finding` for a model that has no maps."""
    view: dict[str, Any] = {"answer": reading.answers[number], "ceiling": None, "layers": []}
    return _render("picture", **_shot(reading.radiograph), view=view)


def _shot(radiograph: Radiograph) -> dict[str, Any]:
    height, width = radiograph.grey.shape
    size = shown_size(height, width)
    return {"shot": radiograph, "width": width, "height": height, "url": radiograph_url(radiograph.grey), "size": size}


def _render(name: str, **context: Any) -> str:
    return getattr(_templates().module, name)(**context)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Template:
    environment = templates("carzero.app")
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}"
    # a true minus sign
    environment.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "−")
    environment.filters["plain"] = lambda value: f"{value:.2f}".replace("-", "−")
    return environment.get_template("fragments.html")
