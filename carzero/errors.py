"""Errors that a user can mend: the command line prints their sentence and exits with 2, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the caller gave is wrong; the message says what, and the way out."""
