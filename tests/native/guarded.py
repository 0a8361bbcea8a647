"""Arrays that end at a page without access, so that one byte read or written beyond them kills the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """Pages between two guard pages, for as long as the object lives."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.body = (size + page - 1) // page * page
        self.total = self.body + 2 * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = _libc.mmap(None, self.total, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        for guard in (self.address, self.address + page + self.body):
            if _libc.mprotect(guard, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.start, self.end = self.address + page, self.address + page + self.body

    def __del__(self) -> None:
        _libc.munmap(self.address, self.total)

    def array(self, shape: tuple[int, ...], dtype: type, at_end: bool = True) -> np.ndarray:
        """An array whose last byte is the last before the upper guard (or whose first is after the lower one)."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self.end - count if at_end else self.start
        raw = (ctypes.c_uint8 * count).from_address(address)
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)


def guarded(values: np.ndarray, at_end: bool = True) -> tuple[np.ndarray, GuardedMemory]:
    """A copy of `values` against a guard page; keep the second result alive."""
    memory = GuardedMemory(values.nbytes)
    array = memory.array(values.shape, values.dtype.type, at_end)
    array[...] = values
    return array, memory
