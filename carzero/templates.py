"""The one way in which pages are made: whatever a file name, header or prompt holds is text and never markup."""

from __future__ import annotations

import jinja2


def templates(package: str) -> jinja2.Environment:
    """Templates that lie in a package: autoescaped; a name that a template knows and its context lacks is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
