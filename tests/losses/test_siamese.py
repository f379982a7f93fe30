"""Agreement of views: NumPy, closed forms, and where the gradient goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from nnssl.losses.siamese import byol_loss, symmetric_loss


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equals_slow_numpy_and_lightly() -> None:
    p_a, z_a, p_b, z_b = (vectors(seed, 5, 7) for seed in range(4))

    def cosine(p: np.ndarray, z: np.ndarray) -> float:
        return float(p @ z / np.sqrt(p @ p) / np.sqrt(z @ z))

    found = symmetric_loss(p_a, z_a, p_b, z_b)
    for row in range(5):
        a, b = (cosine(p[row].numpy(), z[row].numpy()) for p, z in ((p_a, z_b), (p_b, z_a)))
        assert float(found[row]) == pytest.approx(-(a + b) / 2, abs=1e-6)
    theirs = NegativeCosineSimilarity()
    torch.testing.assert_close(found.mean(), (theirs(p_a, z_b) + theirs(p_b, z_a)) / 2)


def test_closed_forms_and_symmetry() -> None:
    a, b = vectors(0, 3, 4), vectors(1, 3, 4)
    torch.testing.assert_close(symmetric_loss(a, a, a, 5 * a), -torch.ones(3))
    torch.testing.assert_close(symmetric_loss(a, -a, a, -a), torch.ones(3))
    torch.testing.assert_close(symmetric_loss(a, b, b, a), symmetric_loss(b, a, a, b))


def test_embeddings_receive_no_gradient() -> None:
    p_a, z_a, p_b, z_b = (vectors(seed, 5, 7).requires_grad_() for seed in range(4))
    symmetric_loss(p_a, z_a, p_b, z_b).sum().backward()
    assert p_a.grad.any()
    assert p_b.grad.any()
    assert z_a.grad is None
    assert z_b.grad is None


def test_byol_equals_lightly_and_slow_numpy() -> None:
    """BYOL's `|q - z|^2` of directions is 2 plus twice lightly's negative cosine."""
    q, z = vectors(0, 5, 7), vectors(1, 5, 7)
    found = byol_loss(q, z)
    torch.testing.assert_close(found.mean(), 2 + 2 * NegativeCosineSimilarity()(q, z))
    for row in range(5):
        a, b = (x[row].numpy() / np.linalg.norm(x[row].numpy()) for x in (q, z))
        assert float(found[row]) == pytest.approx(((a - b) ** 2).sum(), abs=1e-5)


def test_both_directions_of_byol_are_the_siamese_loss() -> None:
    p_a, z_a, p_b, z_b = (vectors(seed, 5, 7) for seed in range(4))
    both = (byol_loss(p_a, z_b) + byol_loss(p_b, z_a)) / 2
    torch.testing.assert_close(both, 2 + 2 * symmetric_loss(p_a, z_a, p_b, z_b))


def test_byol_of_maps_is_the_weighted_mean_over_their_places() -> None:
    q, z, weights = vectors(0, 2, 7, 3, 4), vectors(1, 2, 7, 3, 4), vectors(2, 2, 3, 4).abs()
    weights[0, 1] = 0
    slow = torch.zeros(2)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                slow[b] += (
                    weights[b, i, j] * byol_loss(q[b : b + 1, :, i, j], z[b : b + 1, :, i, j])[0]
                )
        slow[b] /= weights[b].sum()
    torch.testing.assert_close(byol_loss(q, z, weights), slow)
    torch.testing.assert_close(byol_loss(q, z, 0 * weights), torch.zeros(2))


def test_byol_ends_of_the_range_and_gradient() -> None:
    q, z = vectors(0, 3, 4).requires_grad_(), vectors(1, 3, 4).requires_grad_()
    torch.testing.assert_close(byol_loss(q, 5 * q), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(byol_loss(q, -q), 4 * torch.ones(3))
    byol_loss(q, z).sum().backward()
    assert q.grad.any()
    assert z.grad is None
