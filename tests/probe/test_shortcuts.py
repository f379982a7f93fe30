"""The audit of shortcuts: what the images that show nothing are, and when it warns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from nnssl.probe.shortcuts import audit, make_flat, make_noise, warn


def make_batch(count: int = 8, size: tuple[int, ...] = (32, 24)) -> dict[str, Any]:
    """Images of horizontal stripes, of different brightness and contrast."""
    rows = torch.arange(size[0]).view(1, 1, -1, *[1] * (len(size) - 1))
    level = torch.arange(1.0, count + 1).view(-1, 1, *[1] * len(size))
    image = level * torch.sin(rows * 2 * torch.pi / 4 + level) + 10 * level
    image = image.expand(count, 2, *size).contiguous()
    return {"image": image, "key": torch.tensor([[1, 2, 0, j] for j in range(count)])}


@pytest.mark.parametrize("size", [(32, 24), (8, 12, 9)])
def test_noise_has_mean_deviation_and_spectrum_of_the_images(size: tuple[int, ...]) -> None:
    batch = make_batch(size=size)
    image, noise = batch["image"], make_noise(batch["image"], batch["key"])
    axes = tuple(range(2, image.ndim))
    torch.testing.assert_close(noise.mean(axes), image.mean(axes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise.std(axes), image.std(axes), rtol=1e-4, atol=1e-4)
    spectrum = torch.fft.rfftn(noise - noise.mean(axes, keepdim=True), dim=axes).abs()
    stripes = spectrum[:, :, size[0] // 4].flatten(2)[:, :, 0]  # all power is in one frequency
    assert (stripes > 0.7 * spectrum.flatten(2).amax(2)).all()
    assert not torch.allclose(noise[0] / noise[0].std(), noise[1] / noise[1].std())


def test_noise_has_the_amplitude_of_every_frequency() -> None:
    rows = torch.arange(32).view(1, 1, 32, 1) * 2 * torch.pi / 32
    image = (3 * torch.sin(4 * rows) + torch.sin(8 * rows)).expand(64, 1, 32, 8).contiguous()
    noise = make_noise(image, torch.tensor([[1, 2, 0, j] for j in range(64)]))
    power = torch.fft.rfft2(noise).abs().square().mean((0, 1))[:, 0]
    assert 5 < float(power[4] / power[8]) < 16  # 9 but for the drawn amplitudes


def test_flat_images_have_their_own_mean_everywhere() -> None:
    batch = make_batch()
    flat = make_flat(batch["image"], batch["key"])
    assert flat.shape == batch["image"].shape
    torch.testing.assert_close(flat[:, :, 0, 0], batch["image"].mean((2, 3)))
    assert not flat.std((2, 3)).any()


def cheat(batch: dict[str, Any]) -> Mapping[str, float]:
    """A network that answers right where there is any contrast."""
    return {"accuracy": float(batch["image"].std((2, 3)).gt(0).float().mean()), "chance": 0.25}


def test_a_task_that_noise_solves_is_cheated() -> None:
    found = audit(cheat, [make_batch() for _ in range(8)])
    assert found["probe_noise_accuracy"] == 1
    assert found["probe_flat_accuracy"] == 0
    assert found["probe_accuracy_limit"] == pytest.approx(0.25 + 3 * (0.25 * 0.75 / 64) ** 0.5)
    text = warn(found)
    assert "1.000 on noise" in text
    assert "one value" not in text


def test_guessing_passes() -> None:
    found = audit(lambda _: {"accuracy": 0.3, "chance": 0.25}, [make_batch()])
    assert warn(found) == ""
