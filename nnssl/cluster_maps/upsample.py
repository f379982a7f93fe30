"""From the cells of a feature map to voxels: linear, or joint bilateral, guided by the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Upsampling = Literal["linear", "bilateral"]
SIGMA_CELLS = 0.7  # of the Gaussian over distance, in cells
SIGMA_GUIDE = 0.5  # of the Gaussian over intensity, in standard deviations of the guide


def upsample(features: Tensor, guide: Tensor, kind: Upsampling) -> Tensor:
    """Features at the guide's resolution.

    `bilateral`: every voxel takes the mean of the cells around it, weighted by Gaussians of their
    distance and of the difference between the voxel's and the cell's mean intensity.

    Args:
        features: (B, F, *s).
        guide: images (B, C, *S).
        kind: `linear` or `bilateral`.

    Returns:
        (B, F, *S) float32.

    Reference:
        Kopf, Cohen, Lischinski, Uyttendaele: Joint bilateral upsampling. ACM Transactions on
        Graphics 26, 2007. (FeatUp, arXiv:2403.10516, learns the weights of the same form.)
    """
    features, guide = features.float(), guide.float()
    if kind == "linear":
        mode = "bilinear" if guide.ndim == 4 else "trilinear"
        return functional.interpolate(features, guide.shape[2:], mode=mode)
    cells = features.shape[2:]
    coarse = functional.interpolate(guide, cells, mode="area")
    spread = guide.std().clamp_min(1e-6) * SIGMA_GUIDE
    places = [_places(n, m, guide.device) for n, m in zip(guide.shape[2:], cells, strict=True)]
    total = torch.zeros(*features.shape[:2], *guide.shape[2:], device=guide.device)
    weights = torch.zeros(len(guide), 1, *guide.shape[2:], device=guide.device)
    for offset in product((-1, 0, 1), repeat=len(cells)):
        index = [
            (place.round().long() + step).clamp(0, n - 1)
            for place, step, n in zip(places, offset, cells, strict=True)
        ]
        distance = _squares([p - i for p, i in zip(places, index, strict=True)])
        difference = (guide - _take(coarse, index)).square().sum(1, keepdim=True) / spread**2
        weight = torch.exp(-0.5 * (distance / SIGMA_CELLS**2 + difference))
        total += weight * _take(features, index)
        weights += weight
    linear = upsample(features, guide, "linear")
    return torch.where(weights > 1e-6, total / weights.clamp_min(1e-6), linear)


def _places(voxels: int, cells: int, device: torch.device) -> Tensor:
    """Where the voxels lie, in cells."""
    return (torch.arange(voxels, device=device) + 0.5) * cells / voxels - 0.5


def _take(maps: Tensor, index: Sequence[Tensor]) -> Tensor:
    for axis, chosen in enumerate(index):
        maps = maps.index_select(axis + 2, chosen)
    return maps


def _squares(differences: Sequence[Tensor]) -> Tensor:
    """Squared distance on the grid, (*S)."""
    grids = torch.meshgrid(*differences, indexing="ij")
    return torch.stack(grids).square().sum(0)
