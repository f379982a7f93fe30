"""What an objective remembers between steps: a target network, and past embeddings.

Both change in `after_step` only, equally on all ranks.

Reference:
    He, Fan, Wu, Xie, Girshick: Momentum contrast for unsupervised visual representation learning.
    CVPR 2020, arXiv:1911.05722.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnssl.common.distributed import all_gather_no_grad


class MomentumCopy(nn.Module):
    """A copy whose parameters follow the online module: `t <- momentum * t + (1 - momentum) * o`.

    Buffers (running statistics) are taken over as they are. The copy never requires a gradient.
    The online module is remembered, not registered: state dict and parameters are the copy's own.

    Args:
        online: the module to follow.

    Attributes:
        module: the copy.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self._online = (online,)  # in a tuple, so that it does not become a submodule
        self.module = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """One step towards the online module; 1 keeps the copy, 0 takes the online weights."""
        (online,) = self._online
        for target, source in zip(self.module.parameters(), online.parameters(), strict=True):
            target.lerp_(source, 1 - momentum)
        for kept, current in zip(self.module.buffers(), online.buffers(), strict=True):
            kept.copy_(current)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lends the online module the copy's weights, and the copy those of the module."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        (online,) = self._online
        own = [*self.module.parameters(), *self.module.buffers()]
        for kept, current in zip(own, [*online.parameters(), *online.buffers()], strict=True):
            before = kept.clone()
            kept.copy_(current)
            current.copy_(before)


def rise_to_one(momentum: float, progress: float) -> float:
    """Momentum of a target network: `momentum` at the beginning, along a cosine to 1 at the end.

    Reference:
        Grill et al.: Bootstrap your own latent. NeurIPS 2020, arXiv:2006.07733.
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * min(progress, 1)) + 1) / 2


class MemoryBank(nn.Module):
    """Ring buffer of the last `size` embeddings of all ranks; part of the state dict.

    Args:
        size: number of embeddings that are kept.
        features: D of an embedding.

    Raises:
        ValueError: in `enqueue`: another shape than (n, D).
    """

    values: Tensor
    seen: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(size, features))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def read(self) -> Tensor:
        """A copy of what is stored, (up to `size`, D), in no particular order."""
        return self.values[: int(self.seen)].clone()

    def is_filled(self) -> Tensor:
        """Which of `values` are embeddings, (size,) bool, without waiting for a GPU."""
        return torch.arange(len(self.values), device=self.values.device) < self.seen

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor) -> None:
        """Gathers (n, D) embeddings of every rank, the same n on each; the oldest go."""
        size, features = self.values.shape
        if embeddings.ndim != 2 or embeddings.shape[1] != features:
            raise ValueError(
                f"embeddings: found shape {tuple(embeddings.shape)}, allowed: (n, {features})"
            )
        gathered = all_gather_no_grad(embeddings)
        newest = gathered[-size:].to(self.values)
        steps = torch.arange(len(newest), device=self.values.device)
        self.values[(self.seen + steps) % size] = newest
        self.seen.add_(len(newest))
