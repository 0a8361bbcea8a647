"""The kernels of MaxSim as their tables run them, for `aot`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .aot import SHARED, TYPES, Case, case_of, empty, launches
from .max_sim import max_sim, max_sim_backward, tiles

#: (P, N): 256 texts of 24 tokens for images of 196 and of 576 patches; and FILIP's other direction.
_SHAPES = ((196, 6144), (576, 6144), (24, 50176))
_MEMORIES = 256
_WIDTHS = (768, 512)
#: (device, kernel) that every run of the tests compiles, in bfloat16 for an image's rows.
_OFTEN = ((80, "best_rows"), (90, "best_rows"), (90, "row_gradients"), (100, "best_rows"))


def aot_cases() -> Iterator[Case]:
    """Every tile of the table at the published widths."""
    for target in SHARED:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for width in _WIDTHS:
                for rows, tokens in _SHAPES:
                    yield from _shape(target, dtype, width, rows, tokens)


def _shape(target: int, dtype: torch.dtype, width: int, rows: int, tokens: int) -> Iterator[Case]:
    v, w = empty(_MEMORIES, rows, width, dtype=dtype), empty(tokens, width, dtype=dtype)
    g, index = empty(_MEMORIES, tokens), empty(_MEMORIES, tokens, dtype=torch.int32)
    count, choice = empty(_MEMORIES, rows, dtype=torch.int32), tiles(target, dtype)
    what = f"{TYPES[dtype]}, D={width}, P={rows}"
    often = dtype == torch.bfloat16 and (rows, width) == (196, 768)
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
