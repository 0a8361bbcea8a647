"""Which images a list of files and folders stands for, and what each is called in a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from carzero.errors import UserError


@dataclass(frozen=True)
class ImageFile:
    """A file to read as an image.

    Args:
        name: what tables call it, unique among its list.
        path: where it is.
    """

    name: str
    path: Path


def list_images(inputs: Iterable[str | os.PathLike[str]]) -> list[ImageFile]:
    """Every file of the inputs, each once.

    A folder stands for all files in it and its sub-folders, sorted by path; hidden files and folders (those whose name
    starts with a dot) are left out. All others are listed, images or not, so that nothing is passed over in silence.

    A file of a folder is named by its path inside that folder, a file given by itself by its own name. Names that
    would occur twice get the whole path as it was given.

    Args:
        inputs: paths of files and folders.
    Raises:
        UserError: an input does not exist, a folder cannot be read or holds no file, or nothing was given.
    """
    found: list[tuple[str, Path]] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = _files_of(path)
            if not inside:
                raise UserError(f"The folder {path} holds no files, so there is nothing to read.")
            found += [(file.relative_to(path).as_posix(), file) for file in inside]
        elif path.exists():
            found.append((path.name, path))
        else:
            raise UserError(f"There is no file or folder {path}.")
    if not found:
        raise UserError("No image was given: name image files or folders that hold them.")
    once: dict[str, tuple[str, Path]] = {}
    for name, path in found:
        once.setdefault(os.path.realpath(path), (name, path))
    unique = list(once.values())
    uses = Counter(name for name, _ in unique)
    return [ImageFile(name if uses[name] == 1 else path.as_posix(), path) for name, path in unique]


def _files_of(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # a link may lead back up
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(folder).parts)
