"""Frozen features of 2D and 3D U-Nets: shapes, points, projections, tiles, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnssl.modules import unet
from nnssl.modules.metrics import evaluating
from nnssl.probe import features
from tests.probe.dense import dense, dense_features

FEATURES = 4 + 6 + 8
VOLUME = (5, 19, 22)  # no multiple of the strides
INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def volume(channels: int = 2, shape: tuple[int, ...] = VOLUME) -> torch.Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(2))


def without_norm(network: nn.Module) -> nn.Module:
    """Instance normalisation looks at the whole image; without it the receptive field is finite."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, INSTANCE_NORMS):
                setattr(module, name, nn.Identity())
    return network


def test_shape_is_the_volumes_and_no_mode_changes(unet: nn.Module) -> None:
    """`unet`: plain and residual, 2D and 3D."""
    unet.train()
    unet.encoder.stages[0].eval()
    modes = [module.training for module in unet.modules()]
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    found = dense_features(unet, volume())
    assert found.shape == (FEATURES, *VOLUME)
    assert found.isfinite().all()
    assert [module.training for module in unet.modules()] == modes
    assert all(torch.equal(weights[key], value) for key, value in unet.state_dict().items())


def test_modes_are_put_back_after_an_error(make_unet: Callable[..., nn.Module]) -> None:
    network = make_unet(2).train()
    with pytest.raises(ValueError, match=r"found shape \(5, 5\)"):
        dense_features(network, torch.zeros(5, 5))
    assert all(module.training for module in network.modules())


def test_stages_are_those_of_the_encoder(make_unet: Callable[..., nn.Module]) -> None:
    """The first stage needs no upsampling; the last is the bottleneck, upsampled by its stride."""
    network = make_unet(2).eval()
    image = volume(1, (3, 16, 16))
    found = dense_features(network, image)
    with torch.no_grad():
        outputs = unet.encode(network, image.transpose(0, 1))
    assert torch.allclose(found[:4], outputs[0].transpose(0, 1), atol=1e-6)
    full = nn.functional.interpolate(outputs[-1], (16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(found[-8:], full.transpose(0, 1), atol=1e-6)


def test_slices_are_independent_of_their_batch(make_unet: Callable[..., nn.Module]) -> None:
    network, image = make_unet(2), volume(1)
    whole = dense_features(network, image)
    singly = dense_features(network, image, most_voxels=1)
    assert torch.allclose(whole, singly, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_tiles_equal_the_whole_where_the_receptive_field_is_finite(
    make_unet: Callable[..., nn.Module], residual: bool
) -> None:
    """Stride (2, 4, 4): a margin of 8 cells, 16 or 32 voxels, is more than any voxel sees."""
    network = without_norm(make_unet(3, residual))
    image = volume(1, (9, 140, 33))
    whole = dense_features(network, image)
    tiled = dense_features(network, image, most_voxels=10 * 100 * 36, margin=8)
    assert torch.allclose(whole, tiled, atol=1e-5)
    with evaluating(network):
        assert len(list(features.encode_blocks(network, image, 10 * 100 * 36, margin=8))) > 1


def test_tiles_of_a_normalised_network_stay_close(make_unet: Callable[..., nn.Module]) -> None:
    """Not equal: instance normalisation takes its statistics from the tile."""
    network = make_unet(3)
    image = volume(1, (8, 64, 32))
    whole = dense_features(network, image)
    tiled = dense_features(network, image, most_voxels=8 * 48 * 32, margin=2)
    assert not torch.allclose(whole, tiled, atol=1e-5)
    assert (whole - tiled).square().mean() < 0.01 * whole.var()


@pytest.mark.parametrize("most", [10**6, 1500])
def test_points_and_projections_equal_the_dense_features(unet: nn.Module, most: int) -> None:
    image = volume()
    weight = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(3))
    with evaluating(unet):
        for block in features.encode_blocks(unet, image, most, margin=1):
            every_voxel = dense(block)
            assert every_voxel.shape[1:] == block.shape == image[(0, *block.where)].shape
            every = torch.cartesian_prod(*(torch.arange(n) for n in block.shape))[::7]
            assert torch.allclose(
                block.at(every), every_voxel[(slice(None), *every.T)].T, atol=1e-5
            )
            projected = torch.einsum("kf,fzyx->kzyx", weight, every_voxel)
            assert torch.allclose(block.project(weight), projected, atol=1e-4)


def test_cells_of_all_blocks_fill_the_bottleneck_map(unet: nn.Module) -> None:
    planar = len(unet.encoder.strides[0]) == 2
    expected = (5, 5, 6) if planar else (3, 5, 6)
    filled = torch.zeros(expected)
    with evaluating(unet):
        for block in features.encode_blocks(unet, volume(), 1500, margin=1):
            first, cells = block.cells()
            where = tuple(slice(b, b + n) for b, n in zip(first, cells.shape[1:], strict=True))
            assert filled[where].shape == cells.shape[1:]
            filled[where] += 1
    assert (filled == 1).all()


def test_a_volume_of_one_cell_is_padded(unet: nn.Module) -> None:
    assert dense_features(unet, volume(2, (2, 4, 4))).isfinite().all()
