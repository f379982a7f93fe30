"""Pieces: grids on any patch, windows and gaps, exact copies, their own contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.views.pieces import cut_pieces, plan_pieces, standardise


def keys(count: int) -> torch.Tensor:
    return torch.tensor([[7, 3, 0, j] for j in range(count)])


def test_the_grid_of_the_original() -> None:
    """128 / 3: cells of 42 voxels, jitter 3 leaves pieces of 39 (Taleb et al.)."""
    grid = plan_pieces((128, 128, 128), (3,), (1, 1, 1), jitter=3 / 42)
    assert (grid.pieces, grid.window, grid.side) == (27, (42,) * 3, (39,) * 3)


def test_half_overlapping_pieces() -> None:
    """n windows that share half of each other: 2 / (n + 1) of the image (CPC)."""
    grid = plan_pieces((60, 90), (5,), (1, 1), overlap=0.5)
    assert (grid.window, grid.step) == ((20, 30), (10, 15))


@pytest.mark.parametrize("size", [(80, 80), (50, 33), (12, 40, 31)])
@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_pieces_lie_in_the_image_apart_and_move(size: tuple[int, ...], gap: float) -> None:
    grid = plan_pieces(size, (1, 2, 3), (4,) * len(size), overlap=-gap, jitter=0.2)
    begins = grid.draw_begins(keys(200), "here").numpy()
    ends = begins + np.array(grid.side)
    assert begins.shape == (200, grid.pieces, len(size))
    assert begins.min() >= 0
    assert (ends <= np.array(size)).all()
    for axis, (step, window, side) in enumerate(
        zip(grid.step, grid.window, grid.side, strict=True)
    ):
        if grid.counts[axis] > 1:
            assert step - window >= int(gap * window)
        reached = np.unique(begins[:, 0, axis])
        assert len(reached) == window - side + 1  # every place in its window, nothing beyond


def test_a_flat_patch_has_fewer_pieces_along_its_flat_axis() -> None:
    grid = plan_pieces((5, 60, 60), (1, 3), (2, 8, 8), jitter=0.1)
    assert grid.counts == (1, 3, 3)
    assert "9 pieces (1x3x3) of 5x18x18" in str(grid)
    with pytest.raises(ValueError, match=r"\[5, 20, 20\] .*training.patch_size"):
        plan_pieces((5, 20, 20), (1, 3), (2, 8, 8))


def test_pieces_are_copies_voxel_by_voxel() -> None:
    image = torch.randn(3, 2, 9, 12, 10)
    begins = torch.tensor([[[0, 0, 0], [4, 5, 6]], [[2, 3, 1], [1, 8, 6]], [[5, 0, 2], [5, 8, 6]]])
    cut = cut_pieces(image, begins, (4, 4, 4))
    assert cut.shape == (3, 2, 2, 4, 4, 4)
    for sample in range(3):
        for piece in range(2):
            z, y, x = begins[sample, piece]
            expected = image[sample, :, z : z + 4, y : y + 4, x : x + 4]
            assert torch.equal(cut[sample, piece], expected)


def test_places_depend_on_the_sample_alone() -> None:
    grid = plan_pieces((64, 64), (3,), (4, 4), jitter=0.3)
    together = grid.draw_begins(keys(4), "here")
    assert torch.equal(together[2:3], grid.draw_begins(keys(4)[2:3], "here"))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, grid.draw_begins(keys(4), "there"))


def test_standardised_pieces_do_not_tell_brightness_or_contrast() -> None:
    pieces = torch.randn(2, 3, 1, 8, 8)
    changed = pieces * torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1, 1) + torch.randn(
        2, 3, 1, 1, 1
    )
    torch.testing.assert_close(standardise(changed), standardise(pieces), atol=1e-3, rtol=1e-3)
    deviation = standardise(pieces).std((3, 4), correction=0)
    torch.testing.assert_close(deviation, torch.ones(2, 3, 1), atol=1e-3, rtol=0)


def test_an_empty_piece_stays_empty() -> None:
    pieces = torch.randn(1, 2, 1, 8, 8)
    pieces[0, 1] = 3 + 1e-6 * torch.randn(1, 8, 8)
    assert standardise(pieces)[0, 1].abs().max() < 1e-3


def test_rounding_does_not_become_loud() -> None:
    flat = torch.full((1, 2, 1, 8, 8), 0.3) * (1 + 1e-7 * torch.randn(1, 2, 1, 8, 8))
    assert flat.std() > 0
    assert not standardise(flat).any()
    assert not standardise(torch.zeros(1, 2, 1, 8, 8)).any()
