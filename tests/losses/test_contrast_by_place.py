"""Positives by distance of places (PCL), and candidates beyond the batch (MoCo), against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nnssl.losses.contrastive import Near, contrastive_loss, find_pairs

PLACES = [[0.0], [0.3], [0.36], [0.9], [0.05], [0.3]]


def numbers(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.arange(count)
    return index, torch.zeros_like(index), torch.zeros_like(index)


def random(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("soft", [False, True])
def test_near_places_are_positive_and_others_negative(soft: bool) -> None:
    """Slow loops: within 0.1 a positive (weight 1, or falling to 0), beyond it a negative."""
    place = torch.tensor(PLACES)
    near = Near(0.1, soft)
    positive, negative = find_pairs("positions", *numbers(), position=place, near=near)
    expected = np.zeros((6, 6))
    for a in range(6):
        for b in range(6):
            distance = abs(PLACES[a][0] - PLACES[b][0])
            close = a != b and distance < 0.1
            expected[a, b] = close * ((1 - distance / 0.1) if soft else 1)
            assert bool(negative[a, b]) == (a != b and not close)
    sums = expected.sum(1, keepdims=True)
    expected = expected / np.where(sums > 0, sums, 1)
    np.testing.assert_allclose(positive, expected, atol=1e-5)


def test_views_of_one_image_are_positive_wherever_they_lie() -> None:
    index, part, dataset = torch.tensor([0, 0, 1, 1]), torch.zeros(4), torch.zeros(4)
    place = torch.tensor([[0.1], [0.5], [0.9], [0.95]])
    positive, negative = find_pairs("positions", index, part, dataset, position=place)
    assert torch.equal(positive[:2, :2], torch.tensor([[0.0, 1], [1, 0]]))
    assert not negative[0, 1]


def test_every_axis_must_be_near() -> None:
    place = torch.tensor([[0.5, 0.5, 0.5], [0.55, 0.5, 0.5], [0.55, 0.5, 0.7]])
    positive, negative = find_pairs("positions", *numbers(3), position=place)
    assert positive[0].tolist() == [0, 1, 0]
    assert negative[0].tolist() == [False, False, True]


def test_positives_of_another_dataset_do_not_count() -> None:
    index, part, _ = numbers(3)
    place, dataset = torch.full((3, 1), 0.5), torch.tensor([0, 0, 1])
    positive, negative = find_pairs("positions", index, part, dataset, position=place)
    assert positive[0].tolist() == [0, 1, 0]
    assert not negative[0, 2]


def test_places_give_every_anchor_the_same_weight() -> None:
    """Equal embeddings: the mean over anchors with positives of ln(1 + |N_a|), as in the paper."""
    place = torch.tensor(PLACES)
    positive, negative = find_pairs("positions", *numbers(), position=place)
    with_positives = positive.sum(1) > 0
    expected = torch.log1p(negative.sum(1))[with_positives].mean()
    same = torch.ones(6, 8)
    torch.testing.assert_close(contrastive_loss(same, positive, negative, 0.1), expected)


def test_candidates_beyond_the_anchors_equal_slow_loops() -> None:
    """Keys of a target network in the place of the batch's embeddings, and a bank behind them."""
    z, keys = random(4), random(7, seed=1).requires_grad_()
    index = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    part = torch.tensor([0, 1, 0, 1, 1, 0, 0])
    masks = find_pairs("partitions", index, part, torch.zeros(7), anchors=4)
    loss = contrastive_loss(z, *masks, 0.2, candidates=keys)
    similarity = (normalize(z, dim=1) @ normalize(keys, dim=1).T / 0.2).exp().detach()
    terms = []
    for a in range(4):
        negatives = sum(float(similarity[a, n]) for n in range(7) if part[n] != part[a])
        p = (a + 2) % 4
        terms.append(-math.log(float(similarity[a, p]) / (float(similarity[a, p]) + negatives)))
    assert float(loss.detach()) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("kind", ["instances", "partitions", "partitions_across", "positions"])
def test_what_is_remembered_is_never_positive(kind: str) -> None:
    """Member 2 of the bank has instance, part and place of anchor 0."""
    index, place = torch.tensor([0, 0, 0, 0]), torch.tensor([[0.5], [0.5], [0.5], [0.9]])
    part = torch.tensor([0, 0, 0, 1])
    position = {"position": place}
    positive, negative = find_pairs(kind, index, part, torch.zeros(4), anchors=2, **position)
    assert positive.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert negative[:, :2].sum() == 0
    assert negative[:, 2].all() == (kind == "instances")
    assert negative[:, 3].all()
