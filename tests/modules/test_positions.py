"""Places of views in their volume: 0 to 1 along the body, or on every axis."""

from __future__ import annotations

import pytest
import torch

from nnssl.modules.positions import find_parts, find_positions

SHAPE, EXTENT = 20.0, 5


def batch(begin: float, sign: int = 1) -> dict[str, torch.Tensor]:
    first = torch.tensor([[begin, 2.0, 3.0]])
    return {
        "box": torch.stack([first, first + EXTENT], 2),
        "shape": torch.full((1, 3), SHAPE),
        "axis": torch.tensor([0]),
        "sign": torch.tensor([sign]),
    }


@pytest.mark.parametrize(("begin", "expected"), [(0, 0.5 / 16), (15, 15.5 / 16), (40, 1.0)])
def test_a_place_is_the_share_of_first_voxels_below_it(begin: float, expected: float) -> None:
    """16 first voxels are reachable; the head is at 1, whatever the direction of the axis."""
    still, size = torch.eye(3, 4)[None], (EXTENT,) * 3
    up, down = (find_positions(batch(begin, sign), still, size) for sign in (1, -1))
    assert float(up) == pytest.approx(expected)
    assert float(down) == pytest.approx(1 - expected)


def test_on_every_axis_only_the_position_axis_is_turned() -> None:
    still, size = torch.eye(3, 4)[None], (EXTENT,) * 3
    found = find_positions(batch(1, -1), still, size, every_axis=True)
    torch.testing.assert_close(found, torch.tensor([[1 - 1.5 / 16, 2.5 / 16, 3.5 / 16]]))


def test_parts_are_quantiles_of_places() -> None:
    still, size = torch.eye(3, 4)[None], (EXTENT,) * 3
    for begin in range(16):
        made = batch(begin)
        place = float(find_positions(made, still, size))
        assert int(find_parts(made, still, size, 4)) == int(place * 4)
