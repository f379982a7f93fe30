"""Intensity operations: the law, and each formula on images where the result is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.views.intensity import OPERATIONS, Intensity, IntensityContext

RANGES = {
    "noise": (0.1, 0.3),
    "blur": (0.5, 1.5),
    "brightness": (-0.5, 0.5),
    "contrast": (0.5, 1.5),
    "low_resolution": (0.3, 0.9),
    "gamma": (0.5, 2.0),
    "gamma_inverted": (0.5, 2.0),
}


def apply(name: str, image: Tensor, strength: float, spacing: tuple[float, ...]) -> Tensor:
    """One operation with the same strength for all samples and channels."""
    keys = torch.arange(len(image))[:, None].expand(-1, 4)
    shape = (*image.shape[:2], *[1] * len(spacing))
    strengths = torch.full(shape, strength, dtype=image.dtype)
    return OPERATIONS[name](image, strengths, IntensityContext(keys, "v", spacing))


def blob(*shape: int) -> Tensor:
    """Two samples of one channel: smooth random images in [0, 1]."""
    coarse = torch.rand(2, 1, *[4] * len(shape), generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return functional.interpolate(coarse, size=shape, mode=mode)


def test_every_operation_has_a_range_here() -> None:
    assert RANGES.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("probability", [0.5, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_law(
    name: str,
    probability: float,
    batch: dict[str, Any],
    spacing: tuple[float, ...],
    law: Callable[..., None],
) -> None:
    change = Intensity(name, probability, *RANGES[name])
    law(lambda b: {"image": change(b["image"], b["key"], "view", spacing)}, batch)


@pytest.mark.parametrize("name", OPERATIONS)
def test_constant_and_mostly_empty_images_stay_finite(name: str) -> None:
    image = torch.zeros(3, 1, 8, 8)
    image[1] = -1000.0
    image[2, 0, 3, 4] = 5.0
    for strength in RANGES[name]:
        changed = apply(name, image, strength, (1.0, 1.0))
        assert changed.isfinite().all()
        torch.testing.assert_close(changed[:2], image[:2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_not_depend_on_the_unit_of_the_image(name: str) -> None:
    image = blob(12, 13).double()
    for strength in RANGES[name]:
        changed = apply(name, image, strength, (1.0, 1.0))
        other = apply(name, image * 400 - 1000, strength, (1.0, 1.0))
        torch.testing.assert_close((other + 1000) / 400, changed, atol=1e-4, rtol=1e-4)


def test_probability_and_range_are_what_is_drawn() -> None:
    change = Intensity("noise", 0.25, 0.1, 0.3)
    random = np.random.default_rng(0)
    drawn = [change.draw(random, 2) for _ in range(4000)]
    happened = np.array([strength for strength in drawn if strength is not None])
    assert len(happened) / 4000 == pytest.approx(0.25, abs=0.03)
    assert happened.shape[1] == 2
    assert 0.1 <= happened.min() < 0.11
    assert 0.29 < happened.max() <= 0.3
    assert Intensity("noise", 0, 0.1, 0.3).draw(random, 1) is None


def test_noise_has_the_wanted_spread_and_differs_between_channels() -> None:
    image = torch.randn(1, 2, 60, 60, generator=torch.Generator().manual_seed(0)) * 7
    added = apply("noise", image, 0.5, (1.0, 1.0)) - image
    torch.testing.assert_close(added.std(), torch.tensor(3.5), rtol=0.05, atol=0)
    assert not torch.equal(added[:, 0], added[:, 1])


def test_brightness_and_contrast_formulas() -> None:
    image = blob(12, 13) * 5
    mean = image.mean((2, 3), keepdim=True)
    std = image.std((2, 3), keepdim=True, correction=0)
    bright = apply("brightness", image, -0.7, (1.0, 1.0))
    torch.testing.assert_close(bright, image - 0.7 * std)
    contrast = apply("contrast", image, 1.3, (1.0, 1.0))
    torch.testing.assert_close(contrast, mean + 1.3 * (image - mean))


def test_gamma_bends_between_the_quantiles_and_keeps_the_order() -> None:
    ramp = torch.linspace(-2, 6, 1001).reshape(1, 1, 7, 143)
    low, high = -2 + 8 * 0.005, -2 + 8 * 0.995
    inside = (ramp - low) / (high - low)
    wanted = torch.where(
        (inside >= 0) & (inside <= 1), low + (high - low) * inside.clamp_min(0) ** 2, ramp
    )
    bent = apply("gamma", ramp, 2.0, (1.0, 1.0))
    torch.testing.assert_close(bent, wanted, atol=1e-4, rtol=1e-4)
    assert (bent.flatten().diff() >= 0).all()
    inverted = apply("gamma_inverted", ramp, 2.0, (1.0, 1.0))
    assert (inverted >= ramp - 1e-4).all()
    assert (bent <= ramp + 1e-4).all()


def test_gamma_finds_its_range_on_large_images_too() -> None:
    """Every 16th column is empty: a regular subsample would see nothing else."""
    image = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    image[..., ::16] = 0
    bent = apply("gamma", image, 2.0, (1.0, 1.0))
    torch.testing.assert_close(bent, image**2, atol=0.03, rtol=0)


def test_blur_is_a_gaussian_convolution() -> None:
    image = blob(40, 41)
    sigma = 1.3
    taps = torch.exp(-0.5 * (torch.arange(-8, 9) / sigma) ** 2)
    taps = taps / taps.sum()
    wanted = functional.conv2d(image, (taps[:, None] * taps)[None, None])
    blurred = apply("blur", image, sigma, (1.0, 1.0))[..., 8:-8, 8:-8]
    torch.testing.assert_close(blurred, wanted, atol=1e-5, rtol=1e-5)


def test_blur_is_isotropic_in_millimetres() -> None:
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    blurred = apply("blur", point, 2.0, (2.0, 1.0))[0, 0]
    offsets = torch.arange(31) - 15.0
    spread = [(blurred.sum(1 - axis) * offsets**2).sum() for axis in (0, 1)]
    assert spread[0] == pytest.approx(1.0, abs=0.01)  # sigma 2 mm are 1 voxel of 2 mm
    assert spread[1] == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
def test_thick_slices_are_left_alone(name: str) -> None:
    image = torch.rand(1, 1, 6, 12, 12)
    changed = apply(name, image, 0.7, (5.0, 1.0, 1.0))
    for index in range(6):
        alone = apply(name, image[:, :, index], 0.7, (1.0, 1.0))
        torch.testing.assert_close(changed[:, :, index], alone)


@pytest.mark.parametrize(("size", "zoom"), [((16, 20), 0.5), ((15, 21), 0.61), ((8, 10, 9), 0.7)])
def test_low_resolution_is_nearest_down_and_linear_up(size: tuple[int, ...], zoom: float) -> None:
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    coarse = [round(length * zoom) for length in size]
    linear = "bilinear" if len(size) == 2 else "trilinear"
    down = functional.interpolate(image, size=coarse, mode="nearest-exact")
    wanted = functional.interpolate(down, size=size, mode=linear)
    changed = apply("low_resolution", image, zoom, (1.0,) * len(size))
    torch.testing.assert_close(changed, wanted, atol=1e-5, rtol=1e-5)


def test_full_resolution_changes_nothing() -> None:
    image = torch.rand(2, 1, 9, 10)
    torch.testing.assert_close(apply("low_resolution", image, 1.0, (1.0, 1.0)), image)
