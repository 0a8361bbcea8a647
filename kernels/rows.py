"""Whole rows at a time: LayerNorm, the head's last product, and the backward of LayerNorm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import drop
from .gemm import dropout_arguments
from .launch import launch
from .philox import BEFORE_HEAD, Dropout
from .table import check_size, programs

RUNTIME = ("rows", "word", "word_out", "threshold", "queries", "query_stride")


@triton.jit(do_not_specialize=RUNTIME)
def norm_rows(
    x, gamma, beta, present, out, dot_weight, dot_bias, dots, rows, eps,
    seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
    D: tl.constexpr, NORM: tl.constexpr, PRESENT: tl.constexpr, DROPOUT: tl.constexpr, OUT: tl.constexpr,
    DOT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``y = drop(LN(x))``, to be stored (OUT) or multiplied by one vector (DOT)."""
    col = tl.arange(0, COLUMNS)
    col_ok = col < D
    for index in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = index * ROWS + tl.arange(0, ROWS)
        row_ok = row < rows
        read = row_ok
        if PRESENT:
            # what an absent row holds must not be looked at: it may be NaN
            read = row_ok & (tl.load(present + row, mask=row_ok, other=0) > 0)
        place = row[:, None] * D + col[None, :]
        y = tl.load(x + place, mask=read[:, None] & col_ok[None, :], other=0.0).to(tl.float32)
        if NORM:
            away = tl.where(col_ok[None, :], y - (tl.sum(y, 1) / D)[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(away * away, 1) / D + eps)
            y = away * rstd[:, None] * tl.load(gamma + col, mask=col_ok, other=0.0)[None, :]
            y += tl.load(beta + col, mask=col_ok, other=0.0)[None, :]
        if DROPOUT:
            y = drop(
                y, row, row_ok, 0, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
                ROWS, COLUMNS, False,
            )  # fmt: skip
        if OUT:
            tl.store(out + place, y.to(out.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])
        if DOT:
            vector = tl.load(dot_weight + col, mask=col_ok, other=0.0).to(tl.float32)
            dot = tl.sum(y * vector[None, :], 1) + tl.load(dot_bias).to(tl.float32)
            tl.store(dots + row, dot, mask=row_ok)


@triton.jit(do_not_specialize=RUNTIME)
def norm_rows_backward(
    dy, x, gamma, beta, dt, y_out, g_out, sums, rows, eps,
    seed, memory_index, query_index, word, word_out, threshold, scale, queries, query_stride,
    D: tl.constexpr, DROPOUT_IN: tl.constexpr, ADD: tl.constexpr, Y: tl.constexpr, G: tl.constexpr,
    DROPOUT_OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Backward of ``y = LN(x)`` whose result was dropped (DROPOUT_IN) or not; see `norm_backward`."""
    col = tl.arange(0, COLUMNS)
    col_ok = col < D
    weight = tl.load(gamma + col, mask=col_ok, other=0.0)[None, :]
    d_gamma = tl.zeros((COLUMNS,), tl.float32)
    d_beta = tl.zeros((COLUMNS,), tl.float32)
    for index in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = index * ROWS + tl.arange(0, ROWS)
        row_ok = row < rows
        ok = row_ok[:, None] & col_ok[None, :]
        place = row[:, None] * D + col[None, :]
        value = tl.load(x + place, mask=ok, other=0.0).to(tl.float32)
        grad = tl.load(dy + place, mask=ok, other=0.0).to(tl.float32)
        if DROPOUT_IN:
            grad = drop(
                grad, row, row_ok, 0, seed, memory_index, query_index, word, threshold, scale, queries, query_stride,
                ROWS, COLUMNS, False,
            )  # fmt: skip
        away = tl.where(col_ok[None, :], value - (tl.sum(value, 1) / D)[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(away * away, 1) / D + eps)
        normal = away * rstd[:, None]
        d_gamma += tl.sum(grad * normal, 0)
        d_beta += tl.sum(grad, 0)
        if Y:
            y = normal * weight + tl.load(beta + col, mask=col_ok, other=0.0)[None, :]
            tl.store(y_out + place, y.to(y_out.dtype.element_ty), mask=ok)
        grad *= weight
        along = tl.sum(grad * normal, 1) / D
        dx = (grad - (tl.sum(grad, 1) / D)[:, None] - normal * along[:, None]) * rstd[:, None]
        if ADD:
            dx += tl.load(dt + place, mask=ok, other=0.0)
        tl.store(dt + place, dx, mask=ok)
        if G:
            if DROPOUT_OUT:
                dx = drop(
                    dx, row, row_ok, 0, seed, memory_index, query_index, word_out, threshold, scale, queries,
                    query_stride, ROWS, COLUMNS, False,
                )  # fmt: skip
            tl.store(g_out + place, dx.to(g_out.dtype.element_ty), mask=ok)
    # a program's own place: what it adds there from call to call is in the order of the calls
    own = sums + tl.program_id(0).to(tl.int64) * (2 * D) + col
    tl.store(own, tl.load(own, mask=col_ok, other=0.0) + d_gamma, mask=col_ok)
    tl.store(own + D, tl.load(own + D, mask=col_ok, other=0.0) + d_beta, mask=col_ok)


def norm(
    x: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype, *, eps: float, present: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:  # fmt: skip
    """``drop(LN(x))`` ``[..., D]`` in `dtype`; the site of its masks is that before the head.

    Args:
        x: contiguous; gamma, beta float32 ``[D]``.
        present: int32 ``[...]``: rows with 0 count as zeros, whatever they hold.
    """
    flat = x.reshape(-1, x.shape[-1])
    out = flat.new_empty(flat.shape, dtype=dtype)
    _norm_rows(flat, gamma, beta, out, None, None, eps=eps, present=present, dropout=dropout)
    return out.view(x.shape)


def norm_dot(
    x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dropout: Dropout | None = None
) -> Tensor:
    """``drop(LN(x)) . weight + bias`` float32 ``[R]``: a linear head. `x` ``[R, D]``, `weight` ``[D]``."""
    out = x.new_empty(x.shape[0], dtype=torch.float32)
    _norm_rows(x, gamma, beta, None, weight, bias, dots=out, eps=eps, dropout=dropout)
    return out


def dot(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x . weight + bias`` float32 ``[R]``: the last map of an MLP head."""
    out = x.new_empty(x.shape[0], dtype=torch.float32)
    _norm_rows(x, None, None, None, weight, bias, dots=out)
    return out


def _norm_rows(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, out: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, *, dots: Tensor | None = None, eps: float = 0.0, present: Tensor | None = None,
    dropout: Dropout | None = None,
) -> None:  # fmt: skip
    rows, d = x.shape
    assert x.is_contiguous()
    check_size(rows, d)
    if rows == 0:
        return
    height, width = _tile(d, x.device)
    grid = min(triton.cdiv(rows, height), 8 * programs(x.device))
    arguments = {
        "x": x, "gamma": gamma, "beta": beta, "present": present, "out": out, "dot_weight": weight, "dot_bias": bias,
        "dots": dots, "rows": rows, "eps": eps, "D": d, "NORM": gamma is not None, "PRESENT": present is not None,
        "DROPOUT": dropout is not None, "OUT": out is not None, "DOT": dots is not None, "ROWS": height,
        "COLUMNS": width, **dropout_arguments(dropout, BEFORE_HEAD),
    }  # fmt: skip
    launch(norm_rows, (grid,), arguments, num_warps=4)


def norm_sums(d: int, device: torch.device) -> Tensor:
    """Where `norm_backward` adds up the gradients of gamma and beta: ``[programs, 2, D]``; their sum over programs."""
    return torch.zeros(_backward_programs(device), 2, d, dtype=torch.float32, device=device)


def norm_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, sums: Tensor, *, eps: float, dt: Tensor | None = None,
    dy_dropout: Dropout | None = None, y: Tensor | None = None, g: Tensor | None = None,
    g_dropout: Dropout | None = None, g_site: int = 0,
) -> Tensor:  # fmt: skip
    """Adds the gradient of x to `dt` and returns it; ``y = LN(x)``, and dy is that of ``drop(y)``.

    Args:
        dy: ``[R, D]`` any dtype; x ``[R, D]`` float32.
        sums: from `norm_sums`; gradients of gamma and beta are added to it.
        dt: float32 ``[R, D]``, overwritten; None stands for zeros.
        dy_dropout: masks before the head, or None.
        y: ``[R, D]`` to hold LN(x) in its dtype, for a weight's gradient; or None.
        g: ``[R, D]`` to hold ``drop(dt)`` in its dtype, for the next branch; or None.
        g_dropout, g_site: masks of g.
    """
    rows, d = x.shape
    add = dt is not None
    if dt is None:
        dt = torch.empty_like(x)
    assert dy.is_contiguous()
    assert x.is_contiguous()
    check_size(rows, d)
    if rows == 0:
        return dt
    height, width = _tile(d, x.device)
    arguments = dropout_arguments(dy_dropout or g_dropout, BEFORE_HEAD)
    word_out = 0 if g_dropout is None else dropout_arguments(g_dropout, g_site)["word"]
    backward = {
        "dy": dy, "x": x, "gamma": gamma, "beta": beta, "dt": dt, "y_out": y, "g_out": g, "sums": sums, "rows": rows,
        "eps": eps, "word_out": word_out, "D": d, "DROPOUT_IN": dy_dropout is not None, "ADD": add,
        "Y": y is not None, "G": g is not None, "DROPOUT_OUT": g_dropout is not None, "ROWS": height,
        "COLUMNS": width, **arguments,
    }  # fmt: skip
    launch(norm_rows_backward, (min(triton.cdiv(rows, height), sums.shape[0]),), backward, num_warps=4)
    return dt


def _tile(d: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a program's step: 2,048 elements, sixteen a thread; the interpreter pays by the step."""
    width = max(8, triton.next_power_of_2(d))
    return max(1, (4096 if device.type == "cpu" else 2048) // width), width


def _backward_programs(device: torch.device) -> int:
    return 4 * programs(device)
