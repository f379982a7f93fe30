"""Hidden cells: a fixed number, counted randomness; exchanged ones: a permutation, in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.views.cells import draw_visible_cells, swap_cells

KEYS = torch.tensor([[5, 0, 0, row] for row in range(6)])


@pytest.mark.parametrize("cells", [(4, 4), (2, 4, 4)])
@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 0.75), (0.5, 0.5), (0.01, 0), (0.999, 1)])
def test_every_sample_hides_the_same_number_of_blocks(
    cells: tuple[int, ...], ratio: float, hidden: float
) -> None:
    visible = draw_visible_cells(KEYS, cells, ratio, "mask", least_visible=2)
    count = visible[0].numel()
    expected = min(max(1, round(hidden * count)), count - 2)
    assert (~visible).flatten(1).sum(1).tolist() == [expected] * len(KEYS)


def test_a_batch_gives_what_its_samples_give_one_by_one() -> None:
    together = draw_visible_cells(KEYS, (4, 4), 0.75, "mask")
    alone = [draw_visible_cells(key[None], (4, 4), 0.75, "mask") for key in KEYS]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(mask.flatten().tolist()) for mask in together}) > 3
    assert not torch.equal(together, draw_visible_cells(KEYS, (4, 4), 0.75, "other"))


def test_every_block_is_hidden_equally_often() -> None:
    keys = torch.tensor([[5, step, 0, 0] for step in range(2000)])
    share = draw_visible_cells(keys, (3, 4), 0.75, "mask").float().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.25), atol=0.04, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="found 2 blocks per image"):
        draw_visible_cells(KEYS, (1, 2), 0.5, "mask", least_visible=2)


def test_law_of_swapping(batch: dict[str, Any], law: Callable[..., None]) -> None:
    law(lambda part: {"image": swap_cells(part["image"], part["key"], "v", 0.5)}, batch)


@pytest.mark.parametrize("size", [(32, 24), (16, 24, 8), (35, 26)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_whole_cells_are_exchanged_in_pairs(size: tuple[int, ...], share: float) -> None:
    image = torch.arange(3.0 * torch.Size(size).numel()).reshape(3, 1, *size)
    made = swap_cells(image, KEYS[:3], "v", share)
    assert torch.equal(made.flatten(1).sort(1).values, image.flatten(1).sort(1).values)
    assert torch.equal(swap_cells(made, KEYS[:3], "v", share), image)  # twice: back
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
    made = swap_cells(image, KEYS[:3], "v", 0.5)
    assert torch.equal(made[:, 0], made[:, 1])
