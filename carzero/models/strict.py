"""Configurations that say what is wrong: unknown keys, values that do not fit, names nearly right."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from carzero.errors import UserError

_Part = TypeVar("_Part")


def build(part: type[_Part], values: Any, prefix: str) -> _Part:
    """A configuration dataclass from a mapping; `prefix` says where in the whole it stands, as in ``decoder.``."""
    values = mapping(values, prefix)
    known_keys(part, values, prefix)
    try:
        return part(**values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"CARZeroConfig: {prefix or 'a field'} holds a value that does not fit: {error}") from error


def mapping(values: Any, prefix: str) -> Mapping[str, Any]:
    """`values`, which must be a JSON object."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"CARZeroConfig: {prefix.rstrip('.') or 'the configuration'} must be an object, got {values!r}."
        )
    return values


def known_keys(part: type, values: Mapping[str, Any], prefix: str) -> None:
    """Refuse a key that is no field of the dataclass, and name the nearest."""
    known = [f.name for f in dataclasses.fields(part)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"CARZeroConfig: unknown key {prefix}{key!r}; {nearest(key, known)}")


def positive(config: Any, *names: str) -> None:
    """Refuse fields that are not positive ints; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"{type(config).__name__}: {name} must be a positive int, got {value!r}.")


def one_of(config: Any, name: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones, and name the nearest."""
    value = getattr(config, name)
    if value not in known:
        raise UserError(f"{type(config).__name__}: {name} {value!r} is unknown; {nearest(str(value), list(known))}")


def nearest(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest known is {close[0]!r}; known: {', '.join(known)}."
