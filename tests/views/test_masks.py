"""Masks of blocks: fixed number, counted randomness, refusals."""

from __future__ import annotations

import pytest
import torch

from nnssl.views.masks import visible_blocks

KEYS = torch.tensor([[5, 0, 0, row] for row in range(6)])


@pytest.mark.parametrize("cells", [(4, 4), (2, 4, 4)])
@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 0.75), (0.5, 0.5), (0.01, 0), (0.999, 1)])
def test_every_sample_hides_the_same_number_of_blocks(
    cells: tuple[int, ...], ratio: float, hidden: float
) -> None:
    visible = visible_blocks(KEYS, cells, ratio, "mask", least_visible=2)
    count = visible[0].numel()
    expected = min(max(1, round(hidden * count)), count - 2)
    assert (~visible).flatten(1).sum(1).tolist() == [expected] * len(KEYS)


def test_a_batch_gives_what_its_samples_give_one_by_one() -> None:
    together = visible_blocks(KEYS, (4, 4), 0.75, "mask")
    alone = [visible_blocks(key[None], (4, 4), 0.75, "mask") for key in KEYS]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(mask.flatten().tolist()) for mask in together}) > 3
    assert not torch.equal(together, visible_blocks(KEYS, (4, 4), 0.75, "other"))


def test_every_block_is_hidden_equally_often() -> None:
    keys = torch.tensor([[5, step, 0, 0] for step in range(2000)])
    share = visible_blocks(keys, (3, 4), 0.75, "mask").float().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.25), atol=0.04, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_ratio: found 1"):
        visible_blocks(KEYS, (4, 4), 1.0, "mask")
    with pytest.raises(ValueError, match="found 2 blocks per image"):
        visible_blocks(KEYS, (1, 2), 0.5, "mask", least_visible=2)
