"""The processes that share a run: who they are, and the ways in which they exchange numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them; alone by default.

    Args:
        rank: 0 .. world - 1.
        world: W.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This rank's contiguous share of `total` things; shares differ by one at most."""
        small, more = divmod(total, self.world)
        start = self.rank * small + min(self.rank, more)
        return slice(start, start + small + (self.rank < more))

    def sizes(self, total: int) -> list[int]:
        """How many of `total` each rank has."""
        parts = (Ranks(r, self.world).part(total) for r in range(self.world))
        return [p.stop - p.start for p in parts]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks; no gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def stack(self, value: Tensor) -> Tensor:
        """``[W, N, ...]`` of all ranks' values ``[N, ...]`` of one shape; no gradient."""
        value = value.detach().contiguous()
        if self.world == 1:
            return value.unsqueeze(0)
        out = value.new_empty((self.world * value.shape[0], *value.shape[1:]))
        # one after the other: gloo takes no further axis
        dist.all_gather_into_tensor(out, value)
        return out.view(self.world, *value.shape)

    def logsumexp(self, value: Tensor) -> Tensor:
        """The logarithm of the sum over ranks of exp(value), by element; some rank's is finite; no gradient."""
        if self.world == 1:
            return value.detach()
        most = value.detach().clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most + self.sum(torch.exp(value.detach() - most)).log()

    def objects(self, value: Any) -> list[Any]:
        """Every rank's value."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def gather_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """``[sum(sizes), D]`` of the rows ``[sizes[rank], D]`` of each rank; gradients are summed and sent back.

        Equivalent to ``torch.cat`` over ranks, as one tensor in one process.
        """
        return rows if self.world == 1 else _GatherRows.apply(rows, self, sizes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, ranks: Ranks, sizes: list[int]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        every = ranks.stack(padded)
        return torch.cat([part[:size] for part, size in zip(every, sizes)])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        sizes, longest = ctx.sizes, max(ctx.sizes)
        padded = grad.new_zeros((ctx.ranks.world, longest, *grad.shape[1:]))
        for part, own in zip(padded, grad.split(sizes)):
            part[: len(own)] = own
        mine = grad.new_empty((longest, *grad.shape[1:]))
        dist.reduce_scatter_tensor(mine, padded.flatten(0, 1))
        return mine[: sizes[ctx.ranks.rank]], None, None


def join() -> Ranks:
    """Join the group that torchrun started, or run alone where there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leave the group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
