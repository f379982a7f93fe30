"""Exchange of cells: a permutation, of as many cells as asked for, in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.views.swapping import swap_cells

KEYS = torch.tensor([[4, 0, 0, row] for row in range(3)])


def test_law(batch: dict[str, Any], law: Callable[..., None]) -> None:
    law(lambda part: {"image": swap_cells(part["image"], part["key"], "v", 0.5)}, batch)


@pytest.mark.parametrize("size", [(32, 24), (16, 24, 8), (35, 26)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_whole_cells_are_exchanged_in_pairs(size: tuple[int, ...], share: float) -> None:
    image = torch.arange(3.0 * torch.Size(size).numel()).reshape(3, 1, *size)
    made = swap_cells(image, KEYS, "v", share)
    assert torch.equal(made.flatten(1).sort(1).values, image.flatten(1).sort(1).values)
    assert torch.equal(swap_cells(made, KEYS, "v", share), image)  # twice: back
    moved = (made != image)[:, 0]
    sides = [length // 8 for length in size]
    cells = moved
    for axis, side in enumerate(sides):
        cells = cells.narrow(axis + 1, 0, 8 * side).unfold(axis + 1, side, side)
    cells = cells.flatten(1 + len(size)).float().mean(-1)  # share of a cell's voxels that moved
    assert set(cells.unique().tolist()) <= {0.0, 1.0}
    expected = int(share * cells[0].numel()) // 2 * 2
    assert cells.flatten(1).sum(1).tolist() == [expected] * 3
    assert moved.sum() == expected * 3 * torch.tensor(sides).prod()  # the rim stays


def test_channels_move_together() -> None:
    image = torch.rand(3, 1, 16, 16).expand(-1, 2, -1, -1)
    made = swap_cells(image, KEYS, "v", 0.5)
    assert torch.equal(made[:, 0], made[:, 1])
