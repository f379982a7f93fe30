"""Regions of a map: the published grids, the published table as far as a rule gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.modules.regions import find_neighbours, find_spread_axes, place_anchors, place_regions

# of the published code, for 9 regions, in quarter coordinates (row, column)
NINE = """02 20 22 04 40; 00 04 20 22 24; 00 02 22 24 44; 00 02 22 40 42; 00 02 20 24 42;
02 04 22 42 44; 00 20 22 42 44; 20 22 24 40 44; 04 22 24 40 42"""
# of the published code, for 13 regions of 1x1; where the rule differs it takes the second entry
THIRTEEN = """02 20 22 11 13; 00 04 22 11 13; 02 22 24 31>11 13; 00 22 40 11 31; 11 13 31 33 20>02;
04 22 44 13 33; 20 22 42 31 11; 22 40 44 31 33; 22 24 42 33 31>13; 00 02 20 22 13;
02 04 22 24 33>11; 20 22 40 02>42 11; 22 24 42 44 13"""


def read_table(text: str) -> list[set[str]]:
    rows = [row.split() for row in text.replace("\n", " ").split(";")]
    return [{entry.split(">")[-1] for entry in row} for row in rows]


@pytest.mark.parametrize(
    ("interleaved", "table"), [(False, NINE), (True, THIRTEEN)], ids=["9", "13"]
)
def test_neighbours_are_those_of_the_published_table(interleaved, table):
    anchors = place_anchors(2, interleaved)
    names = ["".join(map(str, anchor)) for anchor in anchors.tolist()]
    found = find_neighbours(anchors, 5)
    assert [{names[n] for n in row} for row in found] == read_table(table)


@pytest.mark.parametrize(
    ("axes", "interleaved", "count"),
    [(1, True, 5), (2, False, 9), (2, True, 13), (3, False, 27), (3, True, 35)],
)
def test_so_many_anchors_all_different_none_its_own_neighbour(axes, interleaved, count):
    anchors = place_anchors(axes, interleaved)
    assert len(np.unique(anchors, axis=0)) == len(anchors) == count
    neighbours = find_neighbours(anchors, 4)
    assert all(n not in row and len(set(row)) == 4 for n, row in enumerate(neighbours))
    with pytest.raises(ValueError, match=f"allowed: 1 to {count - 1}"):
        find_neighbours(anchors, count)


def test_regions_lie_in_quarters_from_edge_to_edge():
    """On 12 cells a region of 3 begins at 0, 2, 4, 6 or 9; the last array axis comes first."""
    anchors = place_anchors(2, True)
    cells = place_regions((12, 24), 3, anchors)  # (13, 9, 2)
    cell = ((cells.flip(-1) + 1) * torch.tensor([12.0, 24.0]) - 1) / 2
    torch.testing.assert_close(cell, cell.round(), atol=1e-4, rtol=0)
    begin = {tuple(a): (round(float(c[0])), round(float(c[1]))) for a, c in
             zip(anchors.tolist(), cell[:, 0], strict=True)}  # fmt: skip
    assert begin[0, 0] == (0, 0)
    assert begin[4, 4] == (9, 21)
    assert begin[1, 3] == (2, 15)
    assert (cell[:, -1] - cell[:, 0]).round().equal(torch.full((13, 2), 2.0))


def test_a_thin_axis_holds_one_position():
    assert find_spread_axes((4, 12, 12), 3) == [1, 2]
    assert find_spread_axes((2, 7, 5), 1) == [1, 2]
    cells = place_regions((2, 12, 12), 3, place_anchors(2, True))
    assert cells.shape == (13, 2 * 9, 3)
    assert set(cells[..., 2].flatten().tolist()) == {-0.5, 0.5}
