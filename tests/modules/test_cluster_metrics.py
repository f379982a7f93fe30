"""Sizes, entropy, change and colours of clusters."""

from __future__ import annotations

import pytest
import torch

from nnssl.modules import cluster_metrics
from nnssl.modules.cluster_metrics import LOOK_EVERY, ChangeRate


def test_entropy_is_one_for_equal_use_and_zero_for_one_cluster() -> None:
    assert float(cluster_metrics.entropy(torch.full((7,), 1 / 7))) == pytest.approx(1)
    assert float(cluster_metrics.entropy(torch.eye(7)[0])) == 0
    half = torch.tensor([0.5, 0.5, 0, 0])
    assert float(cluster_metrics.entropy(half)) == pytest.approx(0.5)


def test_change_rate_compares_looks_at_the_first_batch() -> None:
    change, first = ChangeRate(), torch.zeros(1, 1, 2, 2)
    answers = iter([torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])])
    seen = []

    def clusters(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return next(answers)

    for step in range(LOOK_EVERY + 1):
        change.after_step(first + step, clusters)
        assert change.value == (0.25 if step == LOOK_EVERY else 1.0)
    assert len(seen) == 2
    assert all(torch.equal(images, first) for images in seen)


def test_colours_are_fixed_distinct_and_black_is_unknown() -> None:
    assert torch.equal(cluster_metrics.make_palette(50)[:10], cluster_metrics.make_palette(10))
    colours = cluster_metrics.make_palette(20)
    distances = torch.cdist(colours, colours) + torch.eye(20)
    assert float(distances.min()) > 0.1
    painted = cluster_metrics.paint(torch.tensor([[[-1, 3]]]), 4)
    assert painted[0, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(painted[0, 0, 1], colours[3])


def test_volumes_show_their_middle_slice() -> None:
    maps = torch.arange(5).reshape(1, 5, 1, 1).expand(1, 5, 2, 3)
    assert cluster_metrics.take_middle_slice(maps).unique().tolist() == [2]
    assert cluster_metrics.shade(torch.randn(2, 3, 4, 6, 8)).shape == (2, 6, 8, 3)
