"""Tensors out of a torch pickle, without executing anything that the file asks for."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carzero.errors import UserError

#: Modules whose classes a training checkpoint may mention in its settings. They are replaced by an inert stand-in.
_SETTINGS = {"omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "typing", "argparse", "pathlib"}
_SETTINGS |= {"enum", "datetime", "yaml", "numpy"}
_PLAIN = {"dict": dict, "list": list, "set": set, "tuple": tuple, "int": int, "float": float, "str": str, "bool": bool}


class _Inert:
    """Stands where a settings object stood: takes whatever the pickle hands to it, and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def append(self, item: Any) -> None:
        """Take a list item."""

    def extend(self, items: Any) -> None:
        """Take list items."""


class _Call:
    """A function that the pickle may call but not alter."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it tries to set {name} of a function")


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage.data, offset, tuple(size), tuple(stride))  # type: ignore[call-overload]


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Storage:
    """Bytes of the file, with the dtype they are read as."""

    def __init__(self, data: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype


def _storage_dtypes() -> dict[str, torch.dtype]:
    names = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    return {f"{n}Storage": d for n, d in zip(names, (*dtypes, torch.int8, torch.uint8, torch.bool))}


_DTYPES = _storage_dtypes()


class _Unpickler(pickle.Unpickler):
    """Resolves tensors and containers to our own harmless functions, settings to `_Inert`, and refuses all else."""

    def __init__(self, file: Any, path: Path, storage: Callable[[str, int], torch.UntypedStorage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Call(_rebuild_tensor)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _Call(_rebuild_parameter)
        if (module, name) == ("collections", "OrderedDict"):
            return _Call(OrderedDict)
        if (module, name) == ("collections", "defaultdict"):
            return _Call(lambda *_: {})
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _Call(_PLAIN[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in _SETTINGS or (module, name) == ("_codecs", "encode"):
            return _Inert
        raise UserError(
            f"carzero.load: {self._path} is refused: it asks for {module}.{name}, which holds no weights and could run "
            "code; nothing was executed. If you trust its source, save its state_dict alone with torch.save and load "
            "that."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise UserError(f"carzero.load: {self._path} is damaged: {pid!r} is no tensor storage.")
        _, dtype, key, _, count = pid
        return _Storage(self._storage(str(key), int(count) * dtype.itemsize), dtype)


def read_tensors(path: Path) -> Any:
    """The object that `torch.save` wrote, with its tensors on the CPU and every settings object replaced.

    Tensors are views of the mapped file: memory is taken as their pages are read.

    Args:
        path: a zip file of torch.save (torch 1.6 and later), or an older one.

    Raises:
        UserError: no such file, damaged, or asking for anything but tensors, containers and settings.
    """
    try:
        if not zipfile.is_zipfile(path):
            return _read_legacy(path)
        with zipfile.ZipFile(path) as archive:
            return _read_zip(path, archive)
    except UserError:
        raise
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, IndexError) as error:
        raise UserError(f"carzero.load: {path} is damaged or no torch checkpoint ({error}).") from error
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"carzero.load: {path} does not hold tensors as torch.save writes them ({error}).") from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    records = {info.filename: info for info in archive.infolist()}
    index = next((name for name in records if name.endswith("data.pkl")), None)
    if index is None:
        raise UserError(f"carzero.load: {path} is a zip file without data.pkl, so torch.save did not write it.")
    folder = index[: -len("data.pkl")]
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def storage(key: str, size: int) -> torch.UntypedStorage:
        info = records[f"{folder}data/{key}"]
        if info.file_size < size:
            raise UserError(f"carzero.load: {path} is damaged: {info.filename} has {info.file_size} bytes, not {size}.")
        start = _data_offset(archive, info)
        if info.compress_type == zipfile.ZIP_STORED and start % 64 == 0:
            return mapped[start : start + size]
        content = bytearray(archive.read(info))
        return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else mapped[:0]

    with archive.open(index) as file:
        return _Unpickler(file, path, storage).load()


def _data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: after its local header of 30 bytes, its name and its padding."""
    file = archive.fp
    if file is None:
        raise zipfile.BadZipFile("closed while being read")
    file.seek(info.header_offset)
    header = file.read(30)
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _read_legacy(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it reads in part; what it cannot read is an error below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"carzero.load: {path} is refused: it is no zip file of torch.save, and read as an older one it is damaged "
            f"or asks for more than tensors ({str(error).strip().splitlines()[0]}); nothing was executed."
        ) from error
