"""Agreement of views: NumPy, closed forms, and where the gradient goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from nnssl.losses.siamese import symmetric_loss


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
