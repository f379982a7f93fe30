"""Boxes, partners and shares by which images are mixed."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from nnssl.views import mixing


def make_keys(count, step=0):
    return torch.tensor([(0, step, 0, i) for i in range(count)])


@pytest.mark.parametrize("size", [(24, 30), (9, 12, 15)])
def test_a_box_has_the_asked_sides_and_lies_anywhere(size):
    boxes = mixing.draw_boxes(make_keys(200), size, 2 / 3)
    sides = [round(2 / 3 * n) for n in size]
    begins = set()
    for box in boxes[:, 0]:
        where = box.nonzero()
        low, high = where.amin(0), where.amax(0)
        assert (high - low + 1).tolist() == sides
        assert len(where) == torch.tensor(sides).prod()
        begins.add(tuple(low.tolist()))
    seen = torch.tensor(sorted(begins))
    assert seen.amin(0).tolist() == [0] * len(size)
    assert seen.amax(0).tolist() == [n - s for n, s in zip(size, sides, strict=True)]


def test_boxes_depend_on_the_key_alone():
    keys = make_keys(4)
    boxes = mixing.draw_boxes(keys, (20, 20), 0.5)
    assert torch.equal(boxes[2:], mixing.draw_boxes(keys[2:], (20, 20), 0.5))
    assert not torch.equal(boxes, mixing.draw_boxes(make_keys(4, step=1), (20, 20), 0.5))


def test_cutmix_leaves_every_other_image_and_bounds_the_area():
    shares = mixing.draw_cutmix_boxes(make_keys(400), (40, 40)).float().mean((1, 2, 3))
    changed = shares[shares > 0]
    assert 0.4 < len(changed) / 400 < 0.6
    assert changed.min() > 0.01
    assert changed.max() < 0.43
    assert changed.max() - changed.min() > 0.25


def test_partners_are_others_each_once():
    drawn = {tuple(mixing.draw_partners(make_keys(5, step)).tolist()) for step in range(40)}
    assert len(drawn) == 4
    for partners in drawn:
        assert sorted(partners) == [0, 1, 2, 3, 4]
        assert all(partner != i for i, partner in enumerate(partners))
    assert mixing.draw_partners(make_keys(1)).tolist() == [0]


def test_blends_follow_a_folded_beta():
    shares = torch.tensor([mixing.draw_blend(key) for key in make_keys(2000)])
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    # E[max(x, 1 - x)] = 2 E[x; x > 1/2], and x times Beta(a, b) is half of Beta(a + 1, b) for a = b
    expected = stats.beta(1.1, 0.1).sf(0.5)
    assert float(shares.mean()) == pytest.approx(expected, abs=0.01)
