"""Random masks of blocks, as masked autoencoding needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import generator


def visible_blocks(
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
        ValueError: a ratio outside its range, or too few cells.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio: found {mask_ratio}, allowed are numbers between 0 and 1")
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
