"""A fixed number of past embeddings, the same ones on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnssl.common.distributed import all_gather_no_grad


class MemoryBank(nn.Module):
    """Ring buffer of the last `size` embeddings of all ranks; part of the state dict.

    Args:
        size: number of embeddings that are kept.
        features: D of an embedding.

    Raises:
        ValueError: size or features below 1; in `enqueue`: another shape than (n, D).

    Reference:
        He, Fan, Wu, Xie, Girshick: Momentum contrast for unsupervised visual representation
        learning. CVPR 2020, arXiv:1911.05722.
    """

    values: Tensor
    seen: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        for name, value in (("size", size), ("features", features)):
            if value < 1:
                raise ValueError(f"{name}: found {value}, allowed: 1 or more")
        self.register_buffer("values", torch.zeros(size, features))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def read(self) -> Tensor:
        """A copy of what is stored, (up to `size`, D), in no particular order."""
        return self.values[: int(self.seen)].clone()

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor) -> None:
        """Gathers (n, D) embeddings of every rank and puts them in the place of the oldest.

        Call it after the step (`after_step`), on all ranks, with the same n.
        """
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
