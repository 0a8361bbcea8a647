"""The attention kernels as their tables run them, for `aot`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .aot import SHARED, Case
from .attention import average_maps, forward_online, forward_whole
from .attention_backward import backward_queries, backward_rows
from .attention_lanes import count_lanes
from .attention_table import LANES, MAPS, Tiles, backward_tiles, draws_ahead, forward_tiles, precision
from .attention_tiles import widths

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
#: The published head; a narrow one, of one part; one that is wider than the tables' lines are for.
_HEADS, _LAYERS = 4, 4
_WIDTHS = (192, 64, 256)
#: P: a collapsed text, a long one, 7 x 7 + 1, an uncollapsed text, a 224-px image, a 384-px image.
_ROWS = (9, 20, 50, 98, 197, 577)
#: (device, P, row counts, dropout) that every run of the tests compiles.
_OFTEN = (
    (90, 20, True, True), (90, 197, False, True), (90, 577, False, False), (80, 197, False, True),
    (100, 197, False, True),
)  # fmt: skip
_DIVISIBLE = ("q_memory", "kv_memory", "d_kv_memory", "index_memory")
_STRINGS = {
    "count": "*i32", "lse": "*fp32", "delta": "*fp32", "maps": "*fp32", "d_k": "*fp32", "d_v": "*fp32",
    "lanes": "*i16", "seed": "*i64", "memory_index": "*i64", "query_index": "*i64", "factor": "fp32",
    "keep_scale": "fp32", "scale": "fp32",
}  # fmt: skip


def aot_cases() -> Iterator[Case]:
    """Every tile of the tables, plain, with dropout, and with row counts and dropout."""
    for target in SHARED:
        for dtype in _TYPES:
            for width in _WIDTHS:
                for rows in _ROWS:
                    yield from _shape(target, dtype, width, rows)
        yield _lanes(target)


def _shape(target: int, dtype: torch.dtype, width: int, rows: int) -> Iterator[Case]:
    what = f"{_TYPES[dtype]}, K={width}, P={rows}"
    for count, dropout in ((False, False), (False, True), (True, True)):
        flags = {"COUNT": count, "DROPOUT": dropout}
        more = what + (", row counts" if count else "") + (", dropout" if dropout else "")
        # in every run: the published width; a text and images on Hopper, the image with dropout elsewhere
        often = dtype == torch.bfloat16 and width == 192 and (target, rows, count, dropout) in _OFTEN
        forward = forward_tiles(target, dtype, width, rows, count=count)
        backward = backward_tiles(target, dtype, width, rows, count=count)
        kernel = forward_whole if forward.whole else forward_online
        yield _case(kernel, target, dtype, width, forward, more, flags, often)
        if backward.queries is not None:
            yield _case(backward_queries, target, dtype, width, backward.queries, more, flags, often and dropout)
        whole = {**flags, "WHOLE": backward.queries is None}
        yield _case(backward_rows, target, dtype, width, backward.rows, more, whole, often and dropout)
    if rows == 197:
        yield _case(average_maps, target, dtype, width, MAPS[dtype.itemsize], what, {"COUNT": True}, False)


def _lanes(target: int) -> Case:
    constants = {"HEADS": _HEADS, "QUERIES": LANES.queries, "ROWS": LANES.rows, "COUNT": True}
    signature = {name: _STRINGS.get(name, "i32") for name in count_lanes.arg_names if name not in constants}
    name = f"count_lanes: tile {LANES.queries}x{LANES.rows}"
    divisible = ("index_memory",)
    return Case(name, count_lanes, signature, constants, LANES.options(), target, divisible, False, target == 90)


def _case(
    kernel: Any, target: int, dtype: torch.dtype, width: int, tiles: Tiles, what: str, flags: dict[str, bool],
    representative: bool,
) -> Case:  # fmt: skip
    ahead = flags.get("DROPOUT", False) and draws_ahead(target, flags["COUNT"])
    constants = {
        "HEADS": _HEADS, "WIDTH": width, "WIDTHS": widths(width, dtype.itemsize, target), "Q_ROW": _HEADS * width,
        "KV_ROW": 2 * _LAYERS * _HEADS * width, "D_KV_ROW": 2 * _LAYERS * _HEADS * width, "QUERIES": tiles.queries,
        "ROWS": tiles.rows, "PRECISION": precision(dtype), "AHEAD": ahead, **flags,
    }  # fmt: skip
    absent: tuple[str, ...] = () if flags.get("DROPOUT", True) else ("seed", "memory_index", "query_index")
    absent += () if flags["COUNT"] else ("count",)
    absent += () if ahead else ("lanes",)
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    constants |= {name: None for name in absent if name in kernel.arg_names}
    # gradients of queries go back into products: in the operands' dtype
    own = f"*{_TYPES[dtype]}"
    types = {**dict.fromkeys(("q", "k", "v", "out", "do", "d_q"), own), **_STRINGS}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return Case(
        f"{kernel.__name__}: {what}, tile {tiles.queries}x{tiles.rows}", kernel, signature, constants, tiles.options(),
        target, tuple(name for name in _DIVISIBLE if name in signature), dtype.itemsize == 2, representative,
    )  # fmt: skip
