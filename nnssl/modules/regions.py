"""Regions of a feature map: anchors on a grid, the cells that each holds, and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

QUARTERS = 4  # of the way from the first region of an axis to its last


def place_anchors(axes: int, interleaved: bool) -> np.ndarray:
    """Anchors as multiples of a quarter: {0, 2, 4}^d, and interleaved {1, 3}^d behind them.

    In 2D 9 or 13, in 3D 27 or 35.

    Returns:
        (R, axes) integers from 0 to 4.
    """
    found = [*product((0, 2, 4), repeat=axes)]
    return np.array([*found, *(product((1, 3), repeat=axes) if interleaved else ())])


def find_neighbours(anchors: np.ndarray, count: int) -> np.ndarray:
    """The nearest other anchors of each; of equally near ones those that come first in reading
    order (first axis, then second, ...).

    Args:
        anchors: (R, d) of `place_anchors`.
        count: neighbours N per anchor.

    Returns:
        (R, N) numbers of anchors, the nearest first.

    Raises:
        ValueError: there are not so many others.
    """
    if count >= len(anchors):
        raise ValueError(
            f"negatives: found {count}, allowed: 1 to {len(anchors) - 1}, the map has "
            f"{len(anchors)} regions"
        )
    distance = ((anchors[:, None] - anchors[None]) ** 2).sum(-1)
    reading = [anchors[:, axis] for axis in range(anchors.shape[1] - 1, -1, -1)]  # last key first
    order = [np.lexsort((*reading, row)) for row in distance]
    return np.array([found[1 : count + 1] for found in order])


def find_spread_axes(size: Sequence[int], window: int) -> list[int]:
    """Axes that are long enough for five different regions; on others they lie in the middle."""
    return [axis for axis, length in enumerate(size) if length - window >= QUARTERS]


def place_regions(size: Sequence[int], window: int, anchors: np.ndarray) -> Tensor:
    """Cells of every region, a window of cells that begins at its anchor.

    On an axis of n cells the anchor q lies at cell `q (n - w) // 4`, so that the regions reach from
    the first cell to the last.

    Args:
        size: cells of the map per array axis (d,).
        window: cells w of a region per axis; fewer where an axis has fewer.
        anchors: (R, a), of the a axes of `find_spread_axes`.

    Returns:
        (R, w^d, d) normalised coordinates of the cells' centres, last array axis first.
    """
    spread = find_spread_axes(size, window)
    centred = np.full((len(anchors), len(size)), QUARTERS // 2)
    centred[:, spread] = anchors
    widths = [min(window, length) for length in size]
    begin = centred * (np.array(size) - widths) // QUARTERS  # (R, d)
    inside = np.array([*np.ndindex(*widths)])  # (w^d, d)
    cells = begin[:, None] + inside[None]
    centres = (2 * cells + 1) / np.array(size) - 1
    return torch.from_numpy(centres[..., ::-1].copy()).float()
