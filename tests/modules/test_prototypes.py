"""Prototypes: cosines, whatever the lengths and the precision."""

from __future__ import annotations

import pytest
import torch

from nnssl.modules.prototypes import Prototypes


def test_scores_are_cosines_of_any_shape() -> None:
    prototypes, z = Prototypes(6, 4), torch.randn(3, 5, 6)
    scores = prototypes(z)
    expected = torch.cosine_similarity(z[..., None, :], prototypes.weight, dim=-1)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(prototypes(7 * z), scores)
    with torch.no_grad():
        prototypes.weight *= 3
    torch.testing.assert_close(prototypes(z), scores)


def test_begins_with_unit_vectors_and_learns() -> None:
    prototypes = Prototypes(6, 4)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(4))
    prototypes(torch.randn(8, 6))[:, 0].sum().backward()
    assert prototypes.weight.grad is not None
    assert prototypes.weight.grad[0].any()
    assert not prototypes.weight.grad[1].any()


def test_float32_under_autocast_and_zero_vectors_are_finite() -> None:
    prototypes = Prototypes(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        scores = prototypes(torch.randn(2, 6, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert prototypes(torch.zeros(1, 6)).isfinite().all()


@pytest.mark.parametrize(("features", "count"), [(0, 4), (6, 1)])
def test_impossible_sizes_are_named(features: int, count: int) -> None:
    with pytest.raises(ValueError, match="found"):
        Prototypes(features, count)
