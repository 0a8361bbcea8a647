"""A model measured: `carzero evaluate`, `carzero verify`, and checks for known weaknesses."""
