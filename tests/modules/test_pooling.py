"""Pooling against NumPy, 2D and 3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.modules.pooling import SpatialPooling

SIZES = {2: (6, 4), 3: (4, 6, 8)}


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "mean", 2), "kind: found 'mean', allowed: average, moments, grid, max"),
        ((3, "max", 1), "dimension: found 1, allowed: 2, 3"),
        ((3, "grid", 2, 0), "grid: found 0, allowed: 1 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialPooling(*arguments)


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"found shape \(2, 3, 4, 6, 8\), allowed: \(B, 3\) and 2"):
        SpatialPooling(3, "max", 2)(_map(3))
