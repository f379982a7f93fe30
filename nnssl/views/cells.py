"""Cells of a grid over the image: hidden (masked autoencoding), or exchanged (PCRLv2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import generator

SWAP_CELLS = 8  # per axis


def draw_visible_cells(
    keys: Tensor, cells: Sequence[int], mask_ratio: float, salt: str, least_visible: int = 1
) -> Tensor:
    """Which cells of a grid stay visible: a fixed number of them, drawn per sample.

    `round(mask_ratio * cells)` cells are hidden, but at least one, and `least_visible` stay.

    Args:
        keys: int64 (B, 4) on the CPU.
        cells: cells per array axis (d,).
        mask_ratio: share of the cells that is hidden, between 0 and 1.
        salt: names the use; different salts give independent masks.
        least_visible: cells that are never hidden.

    Returns:
        (B, 1, *cells) bool on the CPU, True where visible.

    Raises:
        ValueError: too few cells.
    """
    count = math.prod(cells)
    if count <= least_visible:
        raise ValueError(
            f"masks: found {count} blocks per image ({list(cells)}), allowed are more than "
            f"{least_visible}. Choose a larger patch (training.patch_size) or smaller blocks."
        )
    hidden = min(max(1, round(mask_ratio * count)), count - least_visible)
    visible = np.ones((len(keys), count), dtype=bool)
    for row, key in enumerate(keys):
        visible[row, generator(key, salt).permutation(count)[:hidden]] = False
    return torch.from_numpy(visible.reshape(len(keys), 1, *cells))


def swap_cells(image: Tensor, keys: Tensor, salt: str, share: float) -> Tensor:
    """Exchanges pairs of cells of a grid of 8 cells per axis; voxels of the rest stay.

    Args:
        image: (B, C, *S), is not changed.
        keys: int64 (B, 4) on the CPU.
        salt: name of the view.
        share: share of the cells that change their place, 0 to 1.

    Returns:
        (B, C, *S).
    """
    size = image.shape[2:]
    side = [max(1, length // SWAP_CELLS) for length in size]
    cells = [length // step for length, step in zip(size, side, strict=True)]
    offsets = np.stack([_offsets(key, salt, cells, side, share) for key in keys])  # (B, d, cells)
    source = torch.zeros(len(keys), *size, dtype=torch.int64, device=image.device)
    index = torch.from_numpy(offsets).to(image.device, non_blocking=True)
    cell = _cell_of_voxels(size, side, cells).to(image.device, non_blocking=True)  # (voxels,)
    for axis, length in enumerate(size):
        own = torch.arange(length, device=image.device).reshape(-1, *[1] * (len(size) - 1 - axis))
        source = source * length + own + index[:, axis, cell].reshape(len(keys), *size)
    voxels = image.flatten(2)
    return voxels.gather(2, source.flatten(1)[:, None].expand_as(voxels)).view_as(image)


def _offsets(
    key: Tensor, salt: str, cells: Sequence[int], side: Sequence[int], share: float
) -> np.ndarray:
    """Way to the source in voxels, (d, cells + 1); the last cell, the rim, does not move."""
    count = int(np.prod(cells))
    pairs = generator(key, salt, "swap").permutation(count)[: int(share * count) // 2 * 2]
    partner = np.arange(count)
    partner[pairs] = pairs.reshape(2, -1)[::-1].ravel()
    here, there = (np.stack(np.unravel_index(i, cells)) for i in (np.arange(count), partner))
    return np.pad((there - here) * np.array(side)[:, None], ((0, 0), (0, 1)))


def _cell_of_voxels(size: Sequence[int], side: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Number of the cell of each voxel, (voxels,); those of the rim get a number of their own."""
    places = np.stack(np.meshgrid(*[np.arange(length) for length in size], indexing="ij"))
    coarse = places.reshape(len(size), -1) // np.array(side)[:, None]
    rim = (coarse >= np.array(cells)[:, None]).any(0)
    number = np.ravel_multi_index(tuple(coarse * ~rim), cells)
    return torch.from_numpy(np.where(rim, int(np.prod(cells)), number))
