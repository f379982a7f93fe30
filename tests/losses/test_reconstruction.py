"""Reconstruction loss and trivial answers: slow NumPy, closed forms, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.losses.reconstruction import reconstruction_loss, trivial_losses


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(9)) < 0.4


def slow(restored: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    total = count = 0.0
    for sample, channel, *place in np.ndindex(*target.shape):
        w = weight[(sample, 0, *place)]
        total += w * (restored[(sample, channel, *place)] - target[(sample, channel, *place)]) ** 2
        count += w
    return total / count


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 3, 3, 4, 5)])
def test_equals_slow_numpy(shape: tuple[int, ...]) -> None:
    restored, target = images(0, *shape), images(1, *shape)
    weight = mask(shape[0], 1, *shape[2:])
    found = reconstruction_loss(restored, target, weight)
    expected = slow(restored.numpy(), target.numpy(), weight.float().numpy())
    assert float(found) == pytest.approx(expected, rel=1e-5)
    everything = slow(restored.numpy(), target.numpy(), np.ones(weight.shape))
    assert float(reconstruction_loss(restored, target)) == pytest.approx(
        expected=everything, rel=1e-5
    )


def test_voxels_without_weight_do_not_matter_and_have_no_gradient() -> None:
    target, weight = images(1, 2, 2, 6, 6), mask(2, 1, 6, 6)
    restored = images(0, 2, 2, 6, 6).requires_grad_()
    loss = reconstruction_loss(restored, target, weight)
    loss.backward()
    assert torch.equal((restored.grad != 0), weight.expand_as(restored))
    changed = torch.where(weight, restored.detach(), torch.tensor(77.0))
    assert torch.equal(reconstruction_loss(changed, target, weight), loss.detach())


def test_half_precision_is_computed_in_float32() -> None:
    large = torch.full((1, 1, 300, 300), 200.0, dtype=torch.float16)
    squared = reconstruction_loss(large, torch.zeros_like(large))
    assert float(squared) == pytest.approx(200.0**2, rel=1e-6)
    assert reconstruction_loss(large.double(), large).dtype == torch.float64


def test_nothing_to_restore_costs_nothing() -> None:
    image = images(0, 1, 1, 4, 4)
    assert reconstruction_loss(image, image + 1, torch.zeros(1, 1, 4, 4)) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"answer has shape \(1, 1, 4\)"):
        reconstruction_loss(torch.zeros(1, 1, 4), torch.zeros(1, 2, 4))


def test_trivial_answers_in_closed_form() -> None:
    """Two images, one of 0 and 2, one of 10 and 14, where it counts; corrupted are zeros.

    Own means 1 and 12: (1 + 1 + 4 + 4) / 4 = 2.5. One number 6.5: (42.25 + 20.25 + 12.25 + 56.25)
    / 4 = 32.75. Zeros: (0 + 4 + 100 + 196) / 4 = 75.
    """
    target = torch.tensor([[[0.0, 2, 50]], [[10, 14, 50]]])
    weight = torch.tensor([[[1.0, 1, 0]], [[1, 1, 0]]])
    terms = trivial_losses(target, torch.zeros_like(target), weight)
    assert {name: float(value) for name, value in terms.items()} == {
        "mean_image_loss": 2.5,
        "identity_loss": 75,
        "collapse_loss": 32.75,
    }


def test_no_constant_is_better_than_the_trivial_ones() -> None:
    """Each channel has a mean of its own; without a mask the first is the variance."""
    target = images(3, 3, 2, 6, 6) + torch.arange(6.0).reshape(3, 2, 1, 1)
    terms = trivial_losses(target, target)
    variance = target.flatten(2).var(2, correction=0).mean()
    torch.testing.assert_close(terms["mean_image_loss"], variance)
    torch.testing.assert_close(
        terms["collapse_loss"], target.transpose(0, 1).flatten(1).var(1, correction=0).mean()
    )
    assert terms["identity_loss"] == 0
