"""Numbers and colours that show what clusters do; no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

GOLDEN = (math.sqrt(5) - 1) / 2
PICTURES = 8  # samples that are drawn
LOOK_EVERY = 50  # steps between two looks at how many places change their cluster


@torch.no_grad()
def entropy(shares: Tensor) -> Tensor:
    """`-sum_k p_k ln p_k / ln K` over the last axis: 0 for one cluster, 1 for equal use."""
    return torch.special.entr(shares.float()).sum(-1) / math.log(shares.shape[-1])


@torch.no_grad()
def describe_use(shares: Tensor) -> dict[str, Tensor]:
    """What is logged of the clusters' sizes: their entropy, the largest and the smallest share."""
    return {
        "cluster_entropy": entropy(shares),
        "largest_cluster": shares.amax(),
        "smallest_cluster": shares.amin(),
    }


class ChangeRate:
    """Share of the places of one fixed batch whose cluster differs from that of the last look.

    The batch is the first that is seen (after a resume another one); every rank has its own. Not
    part of the state dict.

    Attributes:
        value: the last rate; 1 before there are two looks, since everything is new.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._images: Tensor | None = None
        self._last: Tensor | None = None
        self._step = 0

    @torch.no_grad()
    def after_step(self, images: Tensor, clusters: Callable[[Tensor], Tensor]) -> None:
        """Look at every `LOOK_EVERY`-th step.

        Args:
            images: (B, C, *S) of this step; kept at the first call.
            clusters: images -> integer map.
        """
        if self._images is None:
            self._images = images.detach().clone()
        if self._step % LOOK_EVERY == 0:
            now = clusters(self._images)
            if self._last is not None:
                self.value = float((now != self._last).float().mean())
            self._last = now
        self._step += 1


def resize_maps(clusters: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, *S) int64 at the middles of so many cells per axis: (B, *size)."""
    if list(clusters.shape[1:]) == list(size):
        return clusters
    maps = clusters[:, None].float()  # exact below 2**24 clusters
    return functional.interpolate(maps, size, mode="nearest-exact").long()[:, 0]


def make_palette(count: int) -> Tensor:
    """Colours (K, 3), 0 to 1; a cluster has the same colour whatever K is, as in every picture."""
    number = torch.arange(count, dtype=torch.float32)
    hue, value = number * GOLDEN % 1, 1 - 0.25 * (number % 3)
    sector = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    depth = torch.minimum(torch.minimum(sector, 4 - sector), torch.tensor(1.0)).clamp_min(0)
    return value[:, None] * (1 - 0.85 * depth)


def paint(clusters: Tensor, count: int) -> Tensor:
    """Cluster maps (B, *S) in colours, of volumes the middle slice: (B, H, W, 3); -1 is black."""
    colours = torch.cat([torch.zeros(1, 3), make_palette(count)]).to(clusters.device)
    return colours[take_middle_slice(clusters) + 1]


def shade(image: Tensor) -> Tensor:
    """First channel of images (B, C, *S) in greys from 0 to 1, middle slice: (B, H, W, 3)."""
    grey = take_middle_slice(image[:, 0].float())
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    return ((grey - low) / (high - low).clamp_min(1e-6))[..., None].expand(*grey.shape, 3)


def take_middle_slice(maps: Tensor) -> Tensor:
    """(B, H, W) of (B, H, W) or (B, Z, H, W)."""
    return maps if maps.ndim == 3 else maps[:, maps.shape[1] // 2]
