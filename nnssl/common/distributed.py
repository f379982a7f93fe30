"""Several processes: gathering with gradient, gathering without, averages.

Every function works without an initialised process group too, as with one process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group is initialised."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def local_rows(count: int) -> tuple[int, int]:
    """Begin and end of this process's rows in what `all_gather` returns for `count` rows each."""
    return rank() * count, (rank() + 1) * count


def all_gather(x: Tensor) -> Tensor:
    """Rows of all processes, in the order of ranks, with gradient.

    The gradient that reaches x is the sum over ranks of what each rank sends back to x's rows.

    Args:
        x: (n, ...), of the same shape on every rank, which is not checked.

    Returns:
        (ranks * n, ...).
    """
    if not is_distributed():
        return x
    gathered: Tensor = _AllGather.apply(x)
    return gathered


@torch.no_grad()
def all_gather_no_grad(x: Tensor) -> Tensor:
    """As `all_gather`, detached; also for integers and truth values."""
    return _gather(x.detach()) if is_distributed() else x.detach()


@torch.no_grad()
def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean over processes, detached; x is not changed."""
    mean = x.detach().clone()
    if is_distributed():
        dist.all_reduce(mean)
        mean /= world_size()
    return mean


def _gather(x: Tensor) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        begin, end = local_rows(len(total) // world_size())
        return total[begin:end]
