"""Every rule keeps what the source computes, wherever that is possible."""

from __future__ import annotations

import pytest
import torch
from networks import configuration, dataset, plans
from torch.nn import functional

from nnssl.finetuning import rules
from nnssl.finetuning.names import first_name, name_once, pair
from nnssl.finetuning.weights import Adaptation, Source, asked_keys, fit, load
from nnssl.modules import unet
from nnssl.nnunet.planned_network import build_planned_network


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take(source, target, part="trained", channels=(), own_channels=(), **adaptation):
    asked = asked_keys(target, part)
    transfer = fit(
        Source(source.state_dict(), channels=channels),
        target,
        asked,
        Adaptation(own_channels, **adaptation),
    )
    load(target, transfer)
    return transfer


def vary_norms(network):
    """Norms as a training leaves them; fresh ones are 1 and 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return network


def outputs(network, images):
    """Full resolution before the segmentation layer, and all encoder stages."""
    with torch.no_grad():
        stages = unet.encode(network, images)
        return [*stages, unet.decode(network, stages)[-1]]


@pytest.mark.parametrize("residual", [False, True])
def test_inflated_2d_weights_see_every_slice_of_a_constant_stack_as_in_2d(make_unet, residual):
    """Exactly, the borders of the stack included; the 3D kernels are 3 long, strides 1 and 2."""
    source = vary_norms(make_unet(2, residual))
    target = make_unet(3, residual, seed=1)
    assert take(source, target).share == 1
    image = draw(2, 1, 16, 16)
    flat = outputs(source, image)
    stack = outputs(target, image[:, :, None].expand(-1, -1, 8, -1, -1))
    for two, three in zip(flat, stack, strict=True):
        expected = two[:, :, None].expand_as(three)
        torch.testing.assert_close(three, expected, rtol=1e-4, atol=1e-4)


def test_a_3d_convolution_in_2d_answers_as_inside_a_constant_stack():
    kernel, image = draw(4, 2, 3, 3, 3), draw(1, 2, 9, 9, seed=1)
    flat = functional.conv2d(image, rules.change_dimension(kernel, 2), padding=1)
    stack = functional.conv3d(
        image[:, :, None].expand(-1, -1, 3, -1, -1), kernel, padding=(0, 1, 1)
    )
    torch.testing.assert_close(stack[:, :, 0], flat, rtol=1e-4, atol=1e-4)
    up = draw(2, 4, 2, 2, 2)
    coarse = functional.conv_transpose3d(image[:, :, None], up, stride=2).mean(2)
    fine = functional.conv_transpose2d(image, rules.change_dimension(up, 2, True), stride=2)
    torch.testing.assert_close(coarse, fine, rtol=1e-4, atol=1e-4)


def test_longer_kernels_answer_the_same_everywhere():
    kernel, image = draw(4, 2, 1, 3, 3), draw(1, 2, 6, 9, 9, seed=1)
    longer = rules.resize_kernel(kernel, (3, 3, 5))
    expected = functional.conv3d(image, kernel, padding=(0, 1, 1))
    found = functional.conv3d(image, longer, padding=(1, 1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (5, 3), (7, 1)])
def test_shorter_kernels_answer_the_same_on_images_that_are_constant_along_the_axis(old, new):
    kernel = draw(4, 2, old, 3, 3)
    image = draw(1, 2, 1, 9, 9, seed=1).expand(-1, -1, 9, -1, -1)
    shorter = rules.resize_kernel(kernel, (new, 3, 3))
    expected = functional.conv3d(image, kernel, padding=(old // 2, 1, 1))[:, :, 4]
    found = functional.conv3d(image, shorter, padding=(new // 2, 1, 1))[:, :, 4]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert rules.resize_kernel(kernel, (2, 3, 3)) is None


def test_transposed_kernels_follow_their_stride():
    kernel, image = draw(2, 4, 1, 2, 2), draw(1, 2, 3, 4, 4, seed=1)
    longer = rules.resize_transposed(kernel, (2, 2, 2))
    expected = functional.conv_transpose3d(image, kernel, stride=(1, 2, 2)).repeat_interleave(2, 2)
    found = functional.conv_transpose3d(image, longer, stride=2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rules.resize_transposed(longer, (1, 2, 2)), kernel)
    assert rules.resize_transposed(longer, (3, 2, 2)) is None


def test_channels_are_found_by_name():
    assert rules.match_channels(["T1", "FLAIR"], ["flair "]) == [1]
    assert rules.match_channels(["T1", "FLAIR"], ["FLAIR", "T2", "T1"]) == [1, None, 0]
    assert rules.match_channels(["T1", "T2"], ["T2", "T1"]) == [1, 0]
    for old, new in ((["a"], ["a"]), (["a"], ["b"]), (["a", "a"], ["a"]), (["a", "b"], ["a", "c"])):
        assert rules.match_channels(old, new) is None


def test_a_known_channel_answers_as_before_where_the_others_are_zero(make_unet):
    source = make_unet(2, channels=3)
    target = make_unet(2, channels=2, seed=1)
    found = take(source, target, channels=("T1", "T2", "FLAIR"), own_channels=("FLAIR", "PD"))
    assert any("by name" in match.reason for match in found.matches)
    flair, other = draw(2, 1, 16, 16), draw(2, 1, 16, 16, seed=1)
    zeros = torch.zeros_like(flair)
    expected = outputs(source, torch.cat([zeros, zeros, flair], 1))
    for a, b in zip(outputs(target, torch.cat([flair, other], 1)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_the_first_features_of_a_wider_network_compute_what_the_source_does(make_unet, residual):
    source = vary_norms(make_unet(2, residual))
    target = make_unet(2, residual, features=(8, 9, 16), seed=1)
    transfer = take(source, target)
    assert transfer.share == 1
    assert transfer.share_of_network < 1
    image = draw(2, 1, 16, 16)
    for narrow, wide in zip(outputs(source, image), outputs(target, image), strict=True):
        torch.testing.assert_close(wide[:, : narrow.shape[1]], narrow, rtol=1e-3, atol=1e-3)


def test_a_narrower_network_takes_the_first_features_only_if_told(make_unet):
    source, target = make_unet(2, features=(8, 12, 16)), make_unet(2, seed=1)
    transfer = take(source, target)
    with pytest.raises(ValueError, match=r"Only 0\.0%.*(.|\n)*weights\.cut_width"):
        transfer.require(0.5)
    assert take(source, target, cuts_width=True).share == 1
    weight = "decoder.stages.1.convs.0.conv.weight"  # two maps: 16 channels become 8
    cut, whole = target.state_dict()[weight], source.state_dict()[weight]
    assert torch.equal(cut[:, :4], whole[:4, :4])
    assert torch.equal(cut[:, 4:], whole[:4, 8:12])


def planned(residual, seed, channels=1, features=(8, 16, 24, 32)):
    torch.manual_seed(seed)
    entry = configuration((64, 64), (1, 1), features, channels=channels, residual=residual)
    return vary_norms(build_planned_network(plans(c2d=entry), "2d", dataset(channels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_residual_network_computes_what_a_plain_one_does(channels):
    """Nearly: the image passes the stem faintly, and a leaky negative is leaked again."""
    source, target = planned(False, 0, channels), planned(True, 1, channels)
    image = draw(2, channels, 64, 64)
    take(source, target)
    for plain, residual in zip(outputs(source, image), outputs(target, image), strict=True):
        assert (plain - residual).norm() < 0.15 * plain.norm()


def test_too_many_channels_for_the_stem_are_told():
    transfer = take(planned(False, 0, 5), planned(True, 1, 5))
    assert any("signs of all channels" in match.reason for match in transfer.matches)


def test_running_statistics_of_a_batch_norm_are_taken():
    entry = configuration((64, 64), (1, 1))
    entry["architecture"]["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    source, target = (build_planned_network(plans(c2d=entry), "2d", dataset()) for _ in range(2))
    for _ in range(3):
        source(draw(4, 1, 64, 64))
    take(source, target)
    image = draw(2, 1, 64, 64)
    both = outputs(source.eval(), image), outputs(target.eval(), image)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_names_of_wrapped_networks_and_aliases_are_one(make_unet):
    state = make_unet(2).state_dict()
    once = name_once(state)
    assert sorted(once) == sorted(n for n, _ in make_unet(2).named_parameters())
    wrapped = {f"module.backbone.{key}": tensor for key, tensor in state.items()}
    assert list(name_once(wrapped)) == list(once)
    only = {key: t for key, t in state.items() if key.startswith("decoder.encoder.")}
    assert all(key.startswith("encoder.") for key in name_once(only))
    assert first_name("_orig_mod.encoder.stem.convs.0.all_modules.2.bias").endswith("0.norm.bias")
    assert pair(once, once) == {key: key for key in once}
