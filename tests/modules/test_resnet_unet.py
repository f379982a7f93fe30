"""The U-Net with timm's ResNet as encoder: its maps are timm's, and `unet` knows its insides."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnssl.modules import unet as u
from nnssl.modules.blocks import enlarge
from nnssl.modules.masked_unet import MaskedEncoder
from nnssl.modules.memory import MomentumCopy
from nnssl.modules.resnet_unet import STRIDES, ResNetUNet


@pytest.fixture
def network(make_resnet) -> nn.Module:
    """With statistics of a batch it has seen, and norms that are not all alike."""
    found = make_resnet()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.startswith("encoder") and parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape))
        found(images(5))
    return found


def images(seed: int = 1, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_levels_strides_and_outputs(network):
    u.check_network(network)
    stages, outputs = u.encode(network, images()), network(images())
    assert u.strides(network) == STRIDES
    assert u.total_stride(network) == [32, 32]
    assert [list(stage.shape[2:]) for stage in stages] == u.stage_sizes(network, [64, 64])
    assert [stage.shape[1] for stage in stages] == u.output_channels(network)
    assert [tuple(out.shape) for out in outputs] == [(2, 2, 64 >> n, 64 >> n) for n in range(5)]
    assert torch.equal(stages[0][:, :1], images())
    assert not stages[0][:, 1:].any()


def test_what_it_computes_is_what_encode_and_decode_compute(network):
    network.eval()
    levels = u.decode(network, u.encode(network, images()))
    assert torch.equal(u.project_out(network, levels[-1]), network(images())[0])
    without = u.decode(network, u.encode(network, images()), use_skips=False)[-1]
    assert not torch.equal(without, levels[-1])


def test_the_measure_of_memory_counts_what_convolutions_put_out(network):
    counted = 0

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network(images())
    assert network.compute_conv_feature_map_size([64, 64]) == counted
    assert 0 < u.encoder_share(network, [64, 64]) < 1


def test_the_decoder_has_no_state_and_the_encoder_starts_as_timms(make_resnet):
    network = make_resnet()
    kinds = {type(m) for m in network.decoder.stages.modules()} | {
        type(m) for m in network.encoder.modules()
    }
    assert {nn.BatchNorm2d, nn.InstanceNorm2d} <= kinds
    assert not any("decoder.stages" in name for name, _ in network.named_buffers())
    torch.manual_seed(0)
    other = make_resnet(seed=0)
    assert all(map(torch.equal, network.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [[1, 1]] * 6}, "strides: found"),
        ({"n_blocks_per_stage": [3, 4, 6, 3]}, "n_blocks_per_stage"),
        ({"features_per_stage": [4, 32, 16, 16, 24, 32]}, r"features_per_stage\[1\]: found \[32\]"),
        ({"input_channels": 5}, "input_channels: found 5, allowed: 1 to 4"),
    ],
)
def test_what_is_no_resnet_is_refused(change, message):
    knobs = {
        "input_channels": 1, "num_classes": 2, "n_stages": 6, "strides": STRIDES,
        "features_per_stage": [4, 64, 16, 16, 24, 32], "kernel_sizes": [[3, 3]] * 6,
        "n_blocks_per_stage": [1] * 6, "n_conv_per_stage_decoder": [1] * 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ResNetUNet(**{**knobs, **change})


def test_a_momentum_copy_keeps_the_running_statistics(network):
    follower = MomentumCopy(network)
    network(images(7))
    follower.update(0.9)
    buffers = dict(network.named_buffers())
    assert buffers
    assert all(torch.equal(b, buffers[n]) for n, b in follower.module.named_buffers())


def some_blocks() -> torch.Tensor:
    blocks = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    blocks[0, 0, 0, 0] = blocks[1, 0, 1] = True
    return blocks


@pytest.mark.parametrize("training", [True, False])
def test_hidden_voxels_change_no_feature_and_no_statistic(network, training):
    network.train(training)
    blocks, found = some_blocks(), []
    seen = enlarge(blocks, [64, 64])
    for image in (images(), torch.where(seen, images(), images() * 50 + 3)):
        masked = copy.deepcopy(network)
        stages = MaskedEncoder(masked)(image, blocks)
        assert not any(s[~enlarge(blocks, s.shape[2:]).expand_as(s)].any() for s in stages)
        found.append([*stages, *masked.buffers()])
    assert all(map(torch.equal, *found))


def test_with_everything_visible_nothing_changes_neither_do_statistics(network):
    masked = copy.deepcopy(network)
    encoder = MaskedEncoder(masked)
    found = encoder(images(), torch.ones(2, 1, 2, 2, dtype=torch.bool))
    for first, second in zip(found, u.encode(network, images()), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    for first, second in zip(masked.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_norms_that_were_exchanged_for_those_of_several_processes_are_masked_too(network):
    encoder = MaskedEncoder(network)
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    blocks = some_blocks()
    stages = encoder(images(), blocks)
    assert not any(s[~enlarge(blocks, s.shape[2:]).expand_as(s)].any() for s in stages)
