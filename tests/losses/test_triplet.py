"""The triplet loss against loops written from the paper, torch's own, and its value at collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from nnssl.losses.triplet import Mining, squared_distances, triplet_loss

MARGIN = 0.7


def draw(anchors: int = 5, candidates: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    distances = 4 * torch.rand(anchors, candidates, generator=generator, dtype=torch.float64)
    positive = torch.arange(anchors) % candidates
    negative = torch.rand(anchors, candidates, generator=generator) < 0.7
    return distances, positive, negative.scatter(1, positive[:, None], False)


def slow(distances: np.ndarray, positive: np.ndarray, negative: np.ndarray, mining: str) -> float:
    terms = []
    for a, row in enumerate(distances):
        own, others = row[positive[a]], [float(d) for n, d in enumerate(row) if negative[a, n]]
        if mining == "semi_hard" and others:
            farther = [d for d in others if d > own]
            others = [min(farther) if farther else max(others)]
        terms += [max(0.0, own - d + MARGIN) for d in others]
    return float(np.mean(terms))


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_equals_loops_written_from_the_paper(mining: Mining) -> None:
    distances, positive, negative = draw()
    distances[0, positive[0]] = 5.0  # farther than every negative: none is semi-hard
    negative[3] = False  # an anchor without negatives adds nothing
    expected = slow(distances.numpy(), positive.numpy(), negative.numpy(), mining)
    found = triplet_loss(distances, positive, negative, MARGIN, mining)
    assert float(found) == pytest.approx(expected)


def test_equals_torch_for_one_negative_each() -> None:
    generator = torch.Generator().manual_seed(2)
    a, p, n = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    distances = squared_distances(a, torch.cat([p, n]))
    negative = torch.cat([torch.zeros(6, 6), torch.eye(6)], 1).bool()
    expected = functional.triplet_margin_with_distance_loss(
        *(functional.normalize(x, dim=1) for x in (a, p, n)),
        distance_function=lambda x, y: (x - y).square().sum(1),
        margin=MARGIN,
    )
    torch.testing.assert_close(triplet_loss(distances, torch.arange(6), negative, MARGIN), expected)


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_is_the_margin_at_collapse_and_zero_when_solved(mining: Mining) -> None:
    same = squared_distances(torch.ones(3, 4), torch.ones(3, 4))
    negative = ~torch.eye(3, dtype=torch.bool)
    assert float(triplet_loss(same, torch.arange(3), negative, MARGIN, mining)) == pytest.approx(
        MARGIN
    )
    apart = squared_distances(torch.eye(3), torch.eye(3))  # 0 to its own, 2 to others
    assert float(triplet_loss(apart, torch.arange(3), negative, MARGIN, mining)) == 0


def test_without_any_negative_it_is_zero_with_a_gradient() -> None:
    distances, positive, negative = draw()
    distances.requires_grad_()
    loss = triplet_loss(distances, positive, torch.zeros_like(negative), MARGIN)
    loss.backward()
    assert float(loss.detach()) == 0
    assert distances.grad is not None
    assert not distances.grad.any()


def test_distances_are_those_of_directions_in_float32_under_autocast() -> None:
    a, b = torch.randn(4, 3), torch.randn(5, 3)
    expected = torch.cdist(functional.normalize(a), functional.normalize(b)).square()
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(3 * a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
