"""The documentation site: `make docs` writes it to build/docs/, and any warning fails."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "carzero"
author = "The carzero authors"
project_copyright = author
version = release = installed("carzero")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# README.md is the list that a code host shows; the site has index.md.
exclude_patterns = ["README.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Public names are written out in api.md, so that a new one is a decision (tests/test_public_names.py).
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"carzero {release}"
html_theme_options = {"footer_icons": []}
