"""The masked encoder: hidden voxels reach nothing, and visible ones see what a crop would see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnssl.modules import unet as u
from nnssl.modules.blocks import enlarge
from nnssl.modules.masked_unet import MaskedEncoder, fill_hidden


def some_blocks(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A mask with a different third of the bottleneck's cells visible in each image."""
    cells = u.stage_sizes(network, images.shape[2:])[-1]
    random = torch.rand(len(images), 1, *cells, generator=torch.Generator().manual_seed(2))
    return random < random.flatten(1).quantile(0.3, 1).reshape(-1, *[1] * (images.ndim - 1))


def with_biases(network: nn.Module) -> nn.Module:
    """Biases other than zero, so that one that reaches hidden cells is seen."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)
    return network


def test_hidden_voxels_do_not_change_visible_features_by_a_bit(
    unet: nn.Module, unet_input: torch.Tensor
) -> None:
    encoder, blocks = MaskedEncoder(with_biases(unet)), some_blocks(unet, unet_input)
    visible = enlarge(blocks, unet_input.shape[2:])
    changed = torch.where(visible, unet_input, unet_input * 100 + 3)
    assert not torch.equal(changed, unet_input)
    for first, second in zip(encoder(unet_input, blocks), encoder(changed, blocks), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(u.encode(unet, unet_input)[-1], u.encode(unet, changed)[-1])


def test_hidden_cells_stay_zero_in_every_layer(unet: nn.Module, unet_input: torch.Tensor) -> None:
    """Every module inside, not the stages' outputs alone: a layer in between could leak."""
    encoder, blocks = MaskedEncoder(with_biases(unet)), some_blocks(unet, unet_input)
    seen = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        hidden = ~enlarge(blocks, output.shape[2:]).expand_as(output)
        seen.append(bool(output[hidden].any()))

    layers = [m for m in u.encoder_modules(unet) if isinstance(m, nn.Conv2d | nn.Conv3d)]
    layers += [m for m in u.encoder_modules(unet) if "InstanceNorm" in type(m).__name__]
    for layer in layers:
        layer.register_forward_hook(hook)
    outputs = encoder(unet_input, blocks)
    assert len(seen) == len(layers)
    assert not any(seen)
    for features in outputs:
        assert features[enlarge(blocks, features.shape[2:]).expand_as(features)].any()


@pytest.mark.parametrize("residual", [False, True])
def test_a_visible_half_is_encoded_as_if_it_had_been_cut_out(make_unet, residual: bool) -> None:
    """Zeros outside are what a convolution pads with, and statistics are those of the crop."""
    network = with_biases(make_unet(2, residual))
    images = torch.randn(2, 1, 16, 32, generator=torch.Generator().manual_seed(4))
    blocks = torch.zeros(2, 1, 4, 8, dtype=torch.bool)
    blocks[..., :4] = True
    expected = u.encode(network, images[..., :16])
    for found, wanted in zip(MaskedEncoder(network)(images, blocks), expected, strict=True):
        half = wanted.shape[-1]
        torch.testing.assert_close(found[..., :half], wanted, rtol=1e-4, atol=1e-5)


def test_with_everything_visible_or_without_a_mask_nothing_changes(
    unet: nn.Module, unet_input: torch.Tensor
) -> None:
    expected = [stage.detach() for stage in u.encode(unet, unet_input)]
    keys = list(unet.state_dict())
    encoder = MaskedEncoder(unet)
    blocks = torch.ones_like(some_blocks(unet, unet_input))
    for found, wanted in zip(encoder(unet_input, blocks), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    plain = u.encode(unet, unet_input)
    assert all(torch.equal(found, wanted) for found, wanted in zip(plain, expected, strict=True))
    assert list(unet.state_dict()) == keys
    u.check_network(unet)


def test_gradients_of_hidden_voxels_are_zero(unet: nn.Module, unet_input: torch.Tensor) -> None:
    encoder, blocks = MaskedEncoder(unet), some_blocks(unet, unet_input)
    images = unet_input.clone().requires_grad_()
    sum(stage.square().sum() for stage in encoder(images, blocks)).backward()
    visible = enlarge(blocks, images.shape[2:]).expand_as(images)
    assert not images.grad[~visible].any()
    assert images.grad[visible].any()


def test_a_copy_has_a_mask_of_its_own(make_unet) -> None:
    holder = nn.Module()
    holder.network = make_unet(2)
    holder.encoder = MaskedEncoder(holder.network)
    other = copy.deepcopy(holder)
    images = torch.randn(1, 1, 16, 16)
    blocks = some_blocks(other.network, images)
    with holder.encoder.visible.shown(~blocks, [(16, 16), (8, 8), (4, 4)]):
        found = other.encoder(images, blocks)
    assert torch.equal(found[-1], holder.encoder(images, blocks)[-1])


def test_the_mask_is_gone_after_an_error(make_unet) -> None:
    network = make_unet(2)
    encoder = MaskedEncoder(network)
    with pytest.raises(ValueError, match=r"\[3, 3\] cells for a map of \[16, 16\]"):
        encoder(torch.randn(1, 1, 16, 16), torch.ones(1, 1, 3, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, 9, 16, 16), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    assert not encoder.visible.masks


def test_another_normalisation_is_refused(make_unet) -> None:
    network = make_unet(2)
    network.encoder.stages[1][0].convs[0].all_modules[1] = nn.GroupNorm(2, 6)
    with pytest.raises(ValueError, match=r"GroupNorm in the encoder.*InstanceNorm"):
        MaskedEncoder(network)


def test_tokens_fill_hidden_cells_only() -> None:
    features = torch.randn(2, 3, 4, 4)
    blocks = torch.tensor([[True, False], [False, True]]).expand(2, 1, 2, 2)
    token = torch.tensor([7.0, 8.0, 9.0]).reshape(1, 3, 1, 1)
    filled = fill_hidden(features, blocks, token)
    assert torch.equal(filled[..., :2, :2], features[..., :2, :2])
    assert torch.equal(filled[..., :2, 2:], token.expand(2, 3, 2, 2))
