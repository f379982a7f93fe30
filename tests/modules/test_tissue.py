"""Tissue of a patch: scikit-image's threshold, padding found from the box, shares per cell."""

from __future__ import annotations

import pytest
import torch
from skimage.filters import threshold_otsu

from nnssl.modules.tissue import (
    BINS,
    find_patch_tissue,
    find_volume,
    otsu,
    weigh_tokens,
    weigh_voxels,
)

IDENTITY = torch.eye(2, 3)[None]


def half_bright(size: int = 16) -> dict[str, torch.Tensor]:
    """A slice of a 16 x 16 volume whose left half is air; the patch begins 4 rows above it."""
    image = torch.zeros(1, 1, size, size)
    image[..., size // 2 :] = 5.0
    image[..., :4, :] = 0.0
    box = torch.tensor([[[3.0, 4.0], [-4.0, size - 4.0], [0.0, size]]])
    return {"image": image, "box": box, "shape": torch.tensor([[9.0, size, size]])}


def test_threshold_is_scikit_image_s() -> None:
    generator = torch.Generator().manual_seed(0)
    dark, bright = (
        torch.randn(3, 400, generator=generator),
        torch.randn(3, 200, generator=generator),
    )
    values = torch.cat([dark, 5 + 1.5 * bright], 1) * torch.tensor([1.0, 10.0, 0.1])[:, None]
    found, constant = otsu(values, torch.ones_like(values, dtype=torch.bool))
    expected = [threshold_otsu(row.numpy(), nbins=BINS) for row in values]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float32), rtol=1e-3, atol=0
    )
    assert not constant.any()


def test_what_is_not_counted_does_not_move_the_threshold() -> None:
    values = torch.cat(
        [torch.linspace(0, 1, 50), torch.linspace(9, 10, 50), torch.full((30,), -99.0)]
    )
    found, _ = otsu(values[None], (values > -50)[None])
    assert 0.9 <= float(found) <= 9.1


def test_constant_patches_are_all_tissue_and_empty_ones_finite() -> None:
    image = torch.full((2, 1, 4, 4), 3.0)
    counted = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    counted[1] = False
    assert find_patch_tissue(image, counted).all()


def test_padding_is_outside_the_volume() -> None:
    inside = find_volume(half_bright())
    assert not inside[0, 0, :4].any()
    assert inside[0, 0, 4:].all()
    batch = half_bright()
    batch["image"] = torch.zeros(1, 2, 6, 16, 16)
    batch["box"] = torch.tensor([[[5.0, 11.0], [0.0, 16.0], [0.0, 16.0]]])
    inside = find_volume(batch)
    assert inside[0, 0, :4].all()
    assert not inside[0, 0, 4:].any()


@pytest.mark.parametrize("background", [0.0, 0.25, 1.0])
def test_tokens_weigh_tissue_one_background_less_and_padding_nothing(background: float) -> None:
    voxels = weigh_voxels(half_bright(), background)
    weights = weigh_tokens(voxels, IDENTITY, (16, 16), (4, 4))[0]
    assert weights.shape == (4, 4)
    torch.testing.assert_close(weights[0], torch.zeros(4))
    torch.testing.assert_close(weights[1:, :2], torch.full((3, 2), background))
    torch.testing.assert_close(weights[1:, 2:], torch.ones(3, 2))


def test_weights_move_with_the_view() -> None:
    flipped = IDENTITY * torch.tensor([-1.0, 1.0, 1.0])  # the last array axis is mirrored
    voxels = weigh_voxels(half_bright(), 0.1)
    straight = weigh_tokens(voxels, IDENTITY, (16, 16), (4, 4))
    mirrored = weigh_tokens(voxels, flipped, (16, 16), (4, 4))
    torch.testing.assert_close(mirrored, straight.flip(-1))
