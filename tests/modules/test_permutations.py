"""Permutations of a jigsaw puzzle: different, far apart, the same everywhere."""

from __future__ import annotations

import pytest
import torch

from nnssl.modules.permutations import choose_permutations, least_distance


@pytest.mark.parametrize(("length", "least"), [(9, 6), (27, 23)])
def test_a_hundred_are_permutations_and_far_apart(length: int, least: int) -> None:
    """Beyond those of the original's 3D file, whose nearest two differ at 19 places of 27."""
    table = choose_permutations(100, length)
    assert table.shape == (100, length)
    assert torch.equal(table.sort(1).values, torch.arange(length).expand(100, -1))
    assert least_distance(table) >= least
    assert torch.equal(table, choose_permutations(100, length))


def test_there_are_no_more_than_there_are() -> None:
    table = choose_permutations(100, 3)
    assert len({tuple(row) for row in table.tolist()}) == 6
    assert torch.equal(choose_permutations(3, 3), table[:3])
    assert least_distance(table[:3]) == 3  # the rotations of three elements


def test_distance_counts_places() -> None:
    assert least_distance(torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [1, 0, 3, 2]])) == 2
