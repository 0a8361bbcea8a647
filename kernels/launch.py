"""Starts kernels; or writes down what would have been started, so that `aot` compiles what runs and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple


class Launch(NamedTuple):
    """A kernel that was not started, with all its arguments by name and its compile options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


_record: list[Launch] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside are written down and not started; tensors may be on the meta device."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def launch(kernel: Any, programs: tuple[int, ...], arguments: dict[str, Any], **options: int) -> None:
    """Start so many programs.

    Args:
        arguments: all of the kernel's, by name.
        options: num_warps, num_stages.
    """
    if _record is not None:
        _record.append(Launch(kernel, arguments, options))
        return
    kernel[programs](**arguments, **options)
