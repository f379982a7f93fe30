"""Metrics against NumPy loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnssl.modules import metrics


def _z(count=9, features=5, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 3


def _directions(z):
    z = z.double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def _masks(count=9, seed=4):
    kind = torch.randint(3, (count, count), generator=torch.Generator().manual_seed(seed))
    return (kind == 1).float().fill_diagonal_(0), (kind == 2).fill_diagonal_(False)


def test_alignment_equals_loops():
    z, weights = _z(), _masks()[0] * torch.rand(9, 9)
    u, total = _directions(z), 0.0
    for a in range(9):
        for p in range(9):
            total += float(weights[a, p]) * np.sum((u[a] - u[p]) ** 2)
    expected = total / float(weights.sum())
    assert float(metrics.alignment(z, weights)) == pytest.approx(expected, rel=1e-5)


def test_alignment_of_equal_and_opposite_pairs():
    pair = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert float(metrics.alignment(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), pair)) == 0
    assert float(metrics.alignment(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), pair)) == 4
    assert metrics.alignment(_z(), torch.zeros(9, 9)).isnan()


def test_uniformity_equals_loops():
    u = _directions(_z())
    kernel = [np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(9) for j in range(i)]
    assert float(metrics.uniformity(_z())) == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)


def test_uniformity_closed_forms():
    """Equal rows: 0. Orthogonal rows have squared distance 2: ln e^-4 = -4."""
    assert float(metrics.uniformity(torch.ones(6, 4))) == pytest.approx(0, abs=1e-5)
    assert float(metrics.uniformity(5 * torch.eye(6))) == pytest.approx(-4, abs=1e-5)


def test_embedding_std_equals_numpy():
    expected = _directions(_z()).std(0).mean() * math.sqrt(5)
    assert float(metrics.embedding_std(_z())) == pytest.approx(expected, rel=1e-5)


def test_embedding_std_is_0_at_collapse_and_1_where_directions_spread():
    """+e_d and -e_d for each d: every feature has mean 0 and variance 2 / (2 D)."""
    assert float(metrics.embedding_std(torch.ones(6, 4))) == pytest.approx(0, abs=1e-6)
    both = torch.cat((torch.eye(4), -torch.eye(4)))
    assert float(metrics.embedding_std(both)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_of_equal_singular_values(rank):
    z = torch.diag(torch.tensor([3.0] * rank + [0.0] * (5 - rank)))
    assert float(metrics.effective_rank(z)) == pytest.approx(rank, rel=1e-5)


def test_effective_rank_equals_the_formula():
    """Singular values 3 and 1: p = 3/4, 1/4; exp of -(3/4 ln 3/4 + 1/4 ln 1/4)."""
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(metrics.effective_rank(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(
        expected, rel=1e-5
    )
    values = np.linalg.svd(_z().double().numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert float(metrics.effective_rank(_z())) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_effective_rank_does_not_stop_a_training(value):
    assert metrics.effective_rank(torch.full((4, 3), value)).isnan()


def test_contrastive_accuracy_equals_loops():
    z, (positive, negative) = _z(), _masks()
    negative[2] = False
    u, right, counted = _directions(z), 0, 0
    for a in range(9):
        for p in range(9):
            negatives = [u[a] @ u[n] for n in range(9) if negative[a, n]]
            if positive[a, p] and negatives:
                counted += 1
                right += u[a] @ u[p] > max(negatives)
    found = float(metrics.contrastive_accuracy(z, positive, negative))
    assert 0 < right < counted
    assert found == pytest.approx(right / counted)


def test_contrastive_accuracy_of_ties_and_of_nothing():
    positive, negative = _masks()
    assert float(metrics.contrastive_accuracy(torch.zeros(9, 2), positive, negative)) == 0
    assert metrics.contrastive_accuracy(_z(), positive, torch.zeros(9, 9).bool()).isnan()


def test_no_gradient_and_half_precision():
    z, (positive, negative) = _z().half().requires_grad_(), _masks()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            metrics.alignment(z, positive),
            metrics.uniformity(z),
            metrics.embedding_std(z),
            metrics.effective_rank(z),
            metrics.contrastive_accuracy(z, positive, negative),
        ]
    plain = z.detach().double().float()
    expected = [
        metrics.alignment(plain, positive),
        metrics.uniformity(plain),
        metrics.embedding_std(plain),
        metrics.effective_rank(plain),
        metrics.contrastive_accuracy(plain, positive, negative),
    ]
    torch.testing.assert_close(found, expected)
    assert not any(value.requires_grad for value in found)


def test_distinct_marks_are_counted_once():
    marks = torch.tensor([[0, 1], [0, 1], [0, 2], [3, 1], [0, 1]])
    chosen = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    assert metrics.count_distinct(chosen, marks).tolist() == pytest.approx([1, 3, 0])
    with torch.autocast("cpu", torch.bfloat16):
        many = metrics.count_distinct(torch.ones(1, 999).bool(), torch.arange(999)[:, None])
    assert float(many) == pytest.approx(999)
