"""The parallel form of local shuffling against the sequential original."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from nnssl.views.deformations import WINDOWS, local_shuffle

SIZES = [(100, 80), (30, 40, 50)]


def sequential(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Window after window, read from the undeformed image: the paper's code, 10,000 of them.

    A 2D image is a slice of its cube, whose windows cover 1/16 of the third axis.
    """
    size, made = image.shape[1:], image.copy()
    for _ in range(10_000 if len(size) == 3 else 625):
        sides = [random.integers(1, length // 10, endpoint=True) for length in size]
        begin = [random.integers(0, n - s, endpoint=True) for n, s in zip(size, sides, strict=True)]
        box = (slice(None), *(slice(b, b + s) for b, s in zip(begin, sides, strict=True)))
        window = image[box].reshape(len(image), -1)
        made[box] = window[:, random.permutation(window.shape[1])].reshape(-1, *sides)
    return made


def places(size: tuple[int, ...]) -> np.ndarray:
    """An image whose channels are the coordinates: shuffled, they tell where a value came from."""
    return np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij")).astype(np.float32)


def both(image: np.ndarray, repetitions: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(repetitions, C, *S) of the original and of the parallel form."""
    random = np.random.default_rng(0)
    original = np.stack([sequential(image, random) for _ in range(repetitions)])
    keys = torch.tensor([[4, 0, 0, row] for row in range(repetitions)])
    batch = torch.from_numpy(image)[None].expand(repetitions, *image.shape)
    return original, local_shuffle(batch, keys, "v").numpy()


@pytest.mark.parametrize("size", SIZES)
def test_values_travel_as_often_and_as_far(size: tuple[int, ...]) -> None:
    image = places(size)
    original, parallel = (made - image for made in both(image))
    moved = [float((way != 0).any(1).mean()) for way in (original, parallel)]
    assert moved[1] == pytest.approx(moved[0], abs=0.03)
    for axis, length in enumerate(size):
        ways = [way[:, axis][(way != 0).any(1)] for way in (original, parallel)]
        assert np.abs(ways[1]).max() < length // 10
        assert np.abs(ways[1]).mean() == pytest.approx(np.abs(ways[0]).mean(), rel=0.05)
        assert abs(ways[1].mean()) < 0.05
        steps = np.arange(1 - length // 10, length // 10)
        shares = [[(way == step).mean() for step in steps] for way in ways]
        np.testing.assert_allclose(shares[1], shares[0], atol=0.025)


@pytest.mark.parametrize("size", SIZES)
def test_the_histogram_stays_as_it_does_in_the_original(size: tuple[int, ...]) -> None:
    """Largest distance of the distribution functions, to the undeformed image's."""
    coordinates = places(size) / np.array(size).reshape(-1, *[1] * len(size))
    image = np.sin(9 * coordinates).sum(0, keepdims=True) + coordinates[:1] ** 2
    distances = [
        max(ks_2samp(made.ravel(), image.ravel()).statistic for made in mades)
        for mades in both(image.astype(np.float32))
    ]
    assert distances[1] <= 2 * distances[0] + 0.005
    assert distances[1] < 0.02


@pytest.mark.parametrize("size", SIZES)
def test_locality_stays_as_it_does_in_the_original(size: tuple[int, ...]) -> None:
    """Correlation with the image, and the local mean, which blurs the shuffling away."""
    coordinates = places(size)
    image = np.sin(coordinates / 3).prod(0, keepdims=True).astype(np.float32)
    scores = [
        np.corrcoef(made[:, 0].ravel(), np.tile(image.ravel(), 4))[0, 1] for made in both(image)
    ]
    assert scores[0] < 0.95
    assert scores[1] == pytest.approx(scores[0], abs=0.03)


@pytest.mark.parametrize("size", [(64, 64, 32), (128, 128, 96)])
def test_larger_images_are_not_shuffled_more_than_in_the_original(size: tuple[int, ...]) -> None:
    """Each value is unique, so that a voxel which changes has moved: 0.79 and 0.70 of them."""
    image = np.arange(np.prod(size), dtype=np.float32).reshape(1, *size)
    shares = [float((made[:, 0] != image[0]).mean()) for made in both(image, 1)]
    assert shares[1] == pytest.approx(shares[0], abs=0.03)


@pytest.mark.parametrize("size", [(9, 9), (12, 300), (512, 512), (8, 200, 200), (15, 15, 15)])
def test_some_voxels_stay_where_they_are_in_images_of_any_size(size: tuple[int, ...]) -> None:
    """Nine tenths of the voxels are reached at most, whatever the size."""
    image = torch.arange(float(np.prod(size))).reshape(1, 1, *size)
    made = local_shuffle(image, torch.tensor([[1, 0, 0, 0]]), "v")
    moved = float((made != image).float().mean())
    assert moved <= 0.92
    assert moved >= 0.4 or max(size) < 20


def test_axes_below_twenty_voxels_do_not_move() -> None:
    image = torch.from_numpy(places((40, 19)))[None]
    made = local_shuffle(image, torch.tensor([[1, 0, 0, 0]]), "v", WINDOWS)
    assert torch.equal(made[:, 1], image[:, 1])
    assert (made[:, 0] != image[:, 0]).any()


def test_channels_move_together() -> None:
    image = torch.rand(2, 1, 30, 30).expand(-1, 3, -1, -1)
    made = local_shuffle(image, torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1]]), "v", WINDOWS)
    assert torch.equal(made[:, 0], made[:, 2])
    assert not torch.equal(made, image)


def test_no_window_no_change() -> None:
    image = torch.rand(1, 1, 30, 30)
    assert torch.equal(local_shuffle(image, torch.tensor([[1, 0, 0, 0]]), "v", 0.0), image)
