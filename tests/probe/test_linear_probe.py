"""The ridge classifier equals scikit-learn's; textures are separable, shuffled labels are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nnssl.probe.linear_probe import LinearProbe, RidgeSums, balance
from tests.probe.dense import dense_features

linear_model = pytest.importorskip("sklearn.linear_model")


def planted(seed: int = 0, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unequal classes whose means differ; features of very different scale."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, 400, p=(0.7, 0.2, 0.1))
    x = rng.normal(size=(400, 6)) + 1.5 * np.eye(6)[y]
    return torch.from_numpy(offset + x * np.logspace(-2, 3, 6)), torch.from_numpy(y)


def fitted(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, alpha: float) -> LinearProbe:
    sums = RidgeSums(x.shape[1], weights)
    for part in torch.arange(len(x)).split(33):
        sums.add(x[part], y[part])
    return sums.solve(alpha)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_equals_ridge_of_scikit_learn(alpha: float) -> None:
    x, y = planted()
    weights = balance(torch.bincount(y))
    sample = weights[y].numpy()
    raw = x.numpy()
    mean = np.average(raw, axis=0, weights=sample)
    z = (raw - mean) / np.sqrt(np.average((raw - mean) ** 2, axis=0, weights=sample))
    reference = linear_model.Ridge(alpha * sample.sum()).fit(z, np.eye(3)[y], sample_weight=sample)
    found = fitted(x, y, weights, alpha).score(x)
    assert np.allclose(found, reference.predict(z), atol=1e-8)
    classifier = linear_model.RidgeClassifier(alpha * len(y), class_weight="balanced").fit(z, y)
    assert (fitted(x, y, weights, alpha).score(x).argmax(1).numpy() == classifier.predict(z)).all()


def test_large_offsets_and_constant_features_cost_nothing() -> None:
    x, y = planted()
    weights = balance(torch.bincount(y))
    plain = fitted(x, y, weights, 0.1)
    moved = torch.cat([x + 1e5, torch.full((len(x), 1), 3.0)], dim=1)
    assert torch.allclose(
        fitted(moved, y, weights, 0.1).score(moved), plain.score(x.double()), atol=1e-6
    )


def test_balanced_weights_give_every_class_the_same_say() -> None:
    counts = torch.tensor([70, 20, 0, 10])
    weights = balance(counts)
    assert weights.tolist() == pytest.approx([100 / 210, 100 / 60, 0, 100 / 30])
    assert (weights * counts).sum() == pytest.approx(100)


def test_a_class_without_example_is_never_predicted() -> None:
    x, y = planted()
    counts = torch.bincount(y, minlength=5)
    assert set(fitted(x, y, balance(counts), 0.1).score(-100 * x).argmax(1).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(("alpha", "added"), [(0.0, True), (0.1, False)])
def test_refusals(alpha: float, added: bool) -> None:
    sums = RidgeSums(6, torch.ones(3))
    if added:
        sums.add(*planted())
    with pytest.raises(ValueError, match="allowed"):
        sums.solve(alpha)


def test_textures_are_separable_and_shuffled_labels_are_not(
    make_unet: Callable[..., nn.Module],
) -> None:
    """Two textures of equal mean and variance, told apart by a random network's features."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 4, 32, 32, generator=generator)
    smooth = nn.functional.avg_pool2d(torch.randn(1, 4, 32, 32, generator=generator), 5, 1, 2)
    image[:, :, :, 16:] = (smooth / smooth.std())[:, :, :, 16:]
    label = torch.zeros(4, 32, 32, dtype=torch.long)
    label[:, :, 16:] = 1
    x = dense_features(make_unet(2, features=(16, 32, 32), seed=1), image).flatten(1).T
    y = label.flatten()
    train = torch.arange(len(y)) < len(y) // 2  # two slices of four
    shuffled = y[torch.randperm(len(y), generator=generator)]
    accuracy = {}
    for name, target in (("true", y), ("shuffled", shuffled)):
        probe = fitted(x[train], target[train], torch.ones(2), 1e-2)
        accuracy[name] = (probe.score(x[~train]).argmax(1) == target[~train]).double().mean()
    assert accuracy["true"] > 0.75
    assert abs(accuracy["shuffled"] - 0.5) < 0.06
