"""Where a raw patch shows tissue: inside its volume, and above its own Otsu threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.modules.grids import sample

BINS = 128
MOST_VOXELS = 65_536  # voxels per raw patch that a threshold is found from


def find_volume(batch: Mapping[str, Any]) -> Tensor:
    """Voxels of the raw patches that lie in the volume and not in the padding, (B, 1, *P) bool.

    Args:
        batch: a loader's batch (`image`, `box`, `shape`).
    """
    image = batch["image"]
    size = image.shape[2:]
    begin = batch["box"].to(image.device)[:, -len(size) :, 0]  # (B, d)
    length = batch["shape"].to(image.device)[:, -len(size) :]
    inside = torch.ones(len(image), 1, *size, dtype=torch.bool, device=image.device)
    for axis, voxels in enumerate(size):
        place = begin[:, axis, None] + torch.arange(voxels, device=image.device)
        within = (place >= 0) & (place < length[:, axis, None])  # (B, voxels)
        inside &= within.reshape(
            len(image), 1, *[voxels if a == axis else 1 for a in range(len(size))]
        )
    return inside


def find_patch_tissue(image: Tensor, counted: Tensor) -> Tensor:
    """Voxels whose first channel lies above its Otsu threshold; all of a constant raw patch.

    The loader's rule for a whole case (`data/tissue_share.py`), here from the raw patch alone.

    Args:
        image: (B, C, *P).
        counted: (B, 1, *P) bool, voxels that take part in finding the threshold.

    Returns:
        (B, 1, *P) bool.
    """
    first = image[:, :1].float()
    step = max(1, first[0].numel() // MOST_VOXELS)
    threshold, constant = otsu(first.flatten(1)[:, ::step], counted.flatten(1)[:, ::step])
    shape = (-1, *[1] * (image.ndim - 1))
    return (first > threshold.reshape(shape)) | constant.reshape(shape)


def otsu(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold of each row that parts its values into two classes of largest distance.

    Args:
        values: (B, N).
        counted: (B, N) bool.

    Returns:
        (B,) thresholds, the centre of one of `BINS` bins, and (B,) whether the row is constant (or
        counts nothing).

    Reference:
        Otsu: A threshold selection method from gray-level histograms. IEEE Transactions on
        Systems, Man, and Cybernetics 9, 1979.
    """
    low = values.masked_fill(~counted, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~counted, -torch.inf).amax(1, keepdim=True)
    constant = ~(high > low)
    low, span = low.where(~constant, 0), (high - low).where(~constant, 1)
    bins = ((values - low) / span * BINS).long().clamp(0, BINS - 1)
    histogram = torch.zeros(len(values), BINS, device=values.device)
    histogram.scatter_add_(1, bins, counted.float())
    centres = (torch.arange(BINS, device=values.device) + 0.5) / BINS
    below, total = histogram.cumsum(1), histogram.sum(1, keepdim=True)
    mass = (histogram * centres).cumsum(1)
    above = total - below
    means = mass / below.clamp_min(1), (mass[:, -1:] - mass) / above.clamp_min(1)
    best = (below * above * (means[0] - means[1]).square()).argmax(1)
    return low[:, 0] + centres[best] * span[:, 0], constant[:, 0]


def weigh_voxels(batch: Mapping[str, Any], background: float) -> Tensor:
    """How much each voxel of the raw patches counts, for all views: tissue 1, padding 0.

    Args:
        batch: a loader's batch.
        background: weight of a voxel in the volume that is no tissue, 0 to 1.

    Returns:
        (B, 1, *P) float32.
    """
    weight = inside = find_volume(batch)
    if background < 1:
        weight = inside & find_patch_tissue(batch["image"], inside)
    return weight.float() + background * (inside & ~weight).float()


def weigh_tokens(
    voxels: Tensor, matrix: Tensor, view_size: Sequence[int], cells: Sequence[int]
) -> Tensor:
    """How much each cell of a view counts: the mean weight of its voxels.

    Args:
        voxels: weights of the raw patches' voxels, (B, 1, *P), see `weigh_voxels`.
        matrix: (B, d, d+1), view to raw patch.
        view_size: voxels of the view per array axis (d,).
        cells: cells per array axis (d,).

    Returns:
        (B, *cells) float32, 0 (outside the volume) to 1.
    """
    seen = sample(voxels, matrix, view_size)
    return functional.interpolate(seen, list(cells), mode="area")[:, 0]
