"""The MLP equals its formula, and batches of one are answered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnssl.modules import heads
from nnssl.modules.heads import MLP


def _x(count=5, features=3):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0))


def _normalised(x, kind):
    """Batch: over images; layer: over features (weights 1, biases 0 at the beginning)."""
    axis = {"batch": 0, "layer": 1}[kind]
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "last"),
    [("none", False), ("batch", False), ("batch", True), ("layer", False), ("layer", True)],
)
def test_equals_the_formula(kind, last, layers):
    mlp, x = MLP(3, 7, 4, layers, kind, last), _x()
    expected = x.numpy()
    linears = [part for part in mlp if isinstance(part, nn.Linear)]
    for number, linear in enumerate(linears):
        is_last = number == len(linears) - 1
        expected = expected @ linear.weight.detach().numpy().T
        expected = expected if linear.bias is None else expected + linear.bias.detach().numpy()
        if kind != "none" and (last or not is_last):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers: found 0, allowed: 1 or more"),
        ({"normalisation": "group"}, "normalisation: found 'group', allowed: none, batch, layer"),
        ({"normalisation": "none", "last_normalisation": True}, "last_normalisation: found True"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MLP(3, 7, 4, **change)
