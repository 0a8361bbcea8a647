"""The kernels of MaxSim as their tables run them, for `aot`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .aot import SHARED, TYPES, Case, case_of, empty, launches
from .max_sim import max_sim, max_sim_backward, tiles

#: P of texts, and of images of 7 x 7, 14 x 14 and 24 x 24 patches; each number of memories that a tile may have.
_ROWS = (9, 24, 49, 98, 196, 576)
_MEMORIES, _TOKENS = 256, 6144
#: The published width; another one for the rows of an image.
_WIDTHS = (768, 512)
_IMAGE = 196
#: (device, kernel) that every run of the tests compiles, in bfloat16 for an image's rows.
_OFTEN = ((80, "best_rows"), (90, "best_rows"), (90, "row_gradients"), (100, "best_rows"))


def aot_cases() -> Iterator[Case]:
    """Every tile of the table."""
    for target in SHARED:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for rows in _ROWS:
                for width in _WIDTHS if rows == _IMAGE else _WIDTHS[:1]:
                    yield from _shape(target, dtype, width, rows)


def _shape(target: int, dtype: torch.dtype, width: int, rows: int) -> Iterator[Case]:
    v, w = empty(_MEMORIES, rows, width, dtype=dtype), empty(_TOKENS, width, dtype=dtype)
    g, index = empty(_MEMORIES, _TOKENS), empty(_MEMORIES, _TOKENS, dtype=torch.int32)
    count, choice = empty(_MEMORIES, rows, dtype=torch.int32), tiles(target, dtype)
    what = f"{TYPES[dtype]}, D={width}, P={rows}"
    often = dtype == torch.bfloat16 and (rows, width) == (_IMAGE, _WIDTHS[0])
    calls = {
        what: lambda: max_sim(v, w, choice=choice),
        f"{what}, row counts, index": lambda: max_sim(v, w, count, index=True, choice=choice),
        f"{what}, backward": lambda: max_sim_backward(v, w, g, index, choice=choice),
    }
    for name, call in calls.items():
        for launch in launches(call):
            kernel = launch.kernel.__name__
            yield case_of(
                launch, name, target, tensor_cores=kernel != "token_gradients" and dtype.itemsize == 2,
                representative=often and name != what and (target, kernel) in _OFTEN,
            )  # fmt: skip
