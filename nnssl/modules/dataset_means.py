"""Mean feature map of every dataset, which is subtracted so that features do not tell datasets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnssl.common.distributed import all_gather_no_grad


class DatasetMeans(nn.Module):
    r"""One mean map per dataset, :math:`\mu_d`, refreshed from what was collected since the last.

    What is collected is part of the state dict too, so that a run that is stopped between two
    refreshes goes on as if it had not been. Before the first refresh the means are 0; a dataset of
    which nothing was collected keeps its mean.

    Args:
        datasets: their number.
        features: F of the map.
        size: cells of the map per axis.
    """

    means: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, datasets: int, features: int, size: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(datasets, features, *size))
        self.register_buffer("sums", torch.zeros(datasets, features, *size))
        self.register_buffer("counts", torch.zeros(datasets))

    def subtract(self, maps: Tensor, dataset: Tensor) -> Tensor:
        """Maps (N, F, *T) less the mean of each one's dataset, (N,), in float32."""
        means = self._members(dataset).T @ self.means.flatten(1)  # (N, F * T)
        return maps.float() - means.reshape(maps.shape)

    @torch.no_grad()
    def collect(self, maps: Tensor, dataset: Tensor) -> None:
        """Adds maps (N, F, *T) of every rank to what the next means are made of."""
        members = self._members(dataset)  # (D, N)
        sums = (members @ maps.detach().float().flatten(1)).unflatten(1, maps.shape[1:])
        self.sums += all_gather_no_grad(sums[None]).sum(0)
        self.counts += all_gather_no_grad(members.sum(1)[None]).sum(0)

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the means of what was collected, and begins to collect anew."""
        counts = self.counts.reshape(-1, *[1] * (self.sums.ndim - 1))
        new = torch.where(counts > 0, self.sums / counts.clamp_min(1), self.means)
        self.means.copy_(new)
        self.sums.zero_()
        self.counts.zero_()

    def _members(self, dataset: Tensor) -> Tensor:
        """(D, N) float32: 1 where an image is of a dataset; an unknown dataset has no mean."""
        numbers = torch.arange(len(self.means), device=dataset.device)
        return (numbers[:, None] == dataset).float()
