"""Cells and blocks: counts, places, refusals."""

from __future__ import annotations

import pytest
import torch

from nnssl.modules.blocks import count_cells, enlarge


def test_enlarged_cells_are_constant_over_their_block() -> None:
    cells = torch.rand(6, 2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    large = enlarge(cells, (4, 4, 9))
    assert large.shape == (6, 2, 4, 4, 9)
    for i in range(4):
        for k in range(9):
            assert torch.equal(large[:, :, i, :, k], cells[:, :, i // 2, :, k // 3])


def test_cells_per_axis() -> None:
    assert count_cells((8, 16, 12), (4, 16, 3)) == [2, 1, 4]


@pytest.mark.parametrize("block", [(4, 4), (4, 5, 4), (4, 4, 0)])
def test_blocks_that_do_not_tile_are_refused(block: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"for images of \[8, 8, 8\] voxels"):
        count_cells((8, 8, 8), block)
    with pytest.raises(ValueError, match=r"found \[2, 2\] cells for a map of \[4, 5\]"):
        enlarge(torch.ones(1, 1, 2, 2), (4, 5))
