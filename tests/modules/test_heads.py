"""Pooling against NumPy, the MLP against its formula, prototypes: cosines in any precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnssl.modules import heads
from nnssl.modules.heads import MLP, Prototypes, SpatialPooling

SIZES = {2: (6, 4), 3: (4, 6, 8)}


# The MLP.


def _x(count=5, features=3):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0))


def _normalised(x, kind):
    """Batch: over images; layer: over features (weights 1, biases 0 at the beginning)."""
    axis = {"batch": 0, "layer": 1}[kind]
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["none", "batch", "layer"])
def test_equals_the_formula(kind, layers):
    mlp, x = MLP(3, 7, 4, layers, kind), _x()
    expected = x.numpy()
    linears = [part for part in mlp if isinstance(part, nn.Linear)]
    for number, linear in enumerate(linears):
        is_last = number == len(linears) - 1
        expected = expected @ linear.weight.detach().numpy().T
        expected = expected if linear.bias is None else expected + linear.bias.detach().numpy()
        if kind != "none" and not is_last:
            assert linear.bias is None
            expected = _normalised(expected, kind)
        expected = expected if is_last else np.maximum(expected, 0)
    assert len(linears) == layers
    assert mlp(x).shape == (5, 4)
    np.testing.assert_allclose(mlp(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_two_layers_with_batch_normalisation():
    kinds = [type(part) for part in MLP(3, 7, 4)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_batch_normalisation_can_be_synchronised():
    mlp = nn.SyncBatchNorm.convert_sync_batchnorm(MLP(3, 7, 4, 3))
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in mlp) == 2
    assert isinstance(mlp, MLP)


@pytest.mark.parametrize("layers", [2, 3])
def test_one_image_and_batch_normalisation(layers, monkeypatch):
    mlp = MLP(3, 7, 4, layers)
    with pytest.raises(ValueError, match="found 1 embedding for batch normalisation"):
        mlp(_x(1))
    assert mlp.eval()(_x(1)).shape == (1, 4)
    monkeypatch.setattr(heads, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        mlp.train()(_x(1))  # ours lets it pass, for the synchronised form takes it


@pytest.mark.parametrize("kind", ["none", "layer"])
def test_one_image_without_batch_normalisation(kind):
    assert MLP(3, 7, 4, normalisation=kind)(_x(1)).isfinite().all()
    assert MLP(3, 7, 4, layers=1)(_x(1)).isfinite().all()


# Pooling.


def _map(dimension):
    return torch.randn(2, 3, *SIZES[dimension], generator=torch.Generator().manual_seed(0))


def _expected(x, kind):
    flat = x.reshape(2, 3, -1)
    if kind == "moments":
        return np.concatenate((flat.mean(2), flat.std(2)), axis=1)
    return {"average": flat.mean, "max": flat.max}[kind](2)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", ["average", "max", "moments"])
def test_equals_numpy(kind, dimension):
    pool, x = SpatialPooling(3, kind, dimension), _map(dimension)
    assert pool(x).shape == (2, pool.out_features)
    np.testing.assert_allclose(pool(x), _expected(x.double().numpy(), kind), atol=1e-5)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("grid", [1, 2])
def test_grid_holds_the_mean_of_each_cell(dimension, grid):
    pool, x = SpatialPooling(3, "grid", dimension, grid), _map(dimension)
    sides = [side // grid for side in SIZES[dimension]]
    found = pool(x).reshape(2, 3, *[grid] * dimension)
    for cell in np.ndindex(*[grid] * dimension):
        where = tuple(slice(i * s, (i + 1) * s) for i, s in zip(cell, sides, strict=True))
        expected = x[(slice(None), slice(None), *where)].flatten(2).mean(2)
        torch.testing.assert_close(found[(slice(None), slice(None), *cell)], expected)
    assert pool.out_features == 3 * grid**dimension


def test_a_flat_map_has_a_finite_gradient():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    SpatialPooling(3, "moments", 2)(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["average", "max", "moments", "grid"])
def test_half_precision_sums_in_float32(kind):
    """+-300: the variance 9e4 is more than float16 holds, the standard deviation 300 is not."""
    x = torch.tensor([-300.0, 300.0]).repeat(64, 32)[None, None].half()
    pool = SpatialPooling(1, kind, 2)
    assert pool(x).dtype == torch.float16
    torch.testing.assert_close(pool(x), pool(x.float()).half())


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"found shape \(2, 3, 4, 6, 8\), allowed: \(B, 3\) and 2"):
        SpatialPooling(3, "max", 2)(_map(3))


# Prototypes.


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
