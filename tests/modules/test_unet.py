"""The U-Net's insides: nnU-Net facts 9 and 10, and every function of `modules/unet.py`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnssl.modules import unet as u


def _aliases(network):
    """Keys of the state dict, grouped by tensor."""
    groups = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(key)
    return list(groups.values())


def _trainable(network):
    return {name for name, p in network.named_parameters() if p.requires_grad}


def test_fact_9_freezing_the_decoder_freezes_the_encoder(unet):
    unet.decoder.requires_grad_(False)
    assert not _trainable(unet)


def test_fact_10_a_state_dict_holds_aliases(unet):
    groups = _aliases(unet)
    assert len(unet.state_dict()) > 2 * len(groups)
    assert len(groups) == len(list(unet.parameters()))
    encoder = [keys for keys in groups if keys[0].startswith("encoder.")]
    assert all(any(key.startswith("decoder.encoder.") for key in keys) for keys in encoder)


def test_fact_10_a_merged_copy_is_overwritten_by_its_aliases(make_unet):
    network, other = make_unet(2), make_unet(2, seed=1)
    merged = copy.deepcopy(network.state_dict())
    merged |= {k: v for k, v in other.state_dict().items() if k.startswith("encoder.")}
    before = network.encoder.stages[0][0].convs[0].conv.weight.clone()
    network.load_state_dict(merged)
    assert torch.equal(network.encoder.stages[0][0].convs[0].conv.weight, before)


def test_another_network_names_the_class_and_the_allowed_ones(unet):
    u.check_network(unet)
    with pytest.raises(ValueError, match=r"Linear.*PlainConvUNet, ResidualEncoderUNet"):
        u.check_network(nn.Linear(1, 1))


def test_check_network_refuses_a_subclass_that_may_compute_otherwise(make_unet):
    network = make_unet(2)
    network.__class__ = type("Other", (type(network),), {})
    with pytest.raises(ValueError, match="Other"):
        u.check_network(network)


def test_encode_equals_the_encoder(unet, unet_input):
    expected = unet.encoder(unet_input)
    found = u.encode(unet, unet_input)
    assert len(found) == len(expected) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_decode_and_project_out_equal_the_network(unet, unet_input):
    unet.decoder.deep_supervision = False
    levels = u.decode(unet, u.encode(unet, unet_input))
    assert torch.equal(u.project_out(unet, levels[-1]), unet(unet_input))


def test_project_out_of_every_level_equals_deep_supervision(unet, unet_input):
    levels = u.decode(unet, u.encode(unet, unet_input))
    outputs = [u.project_out(unet, x, level) for level, x in enumerate(levels)]
    assert all(torch.equal(a, b) for a, b in zip(outputs[::-1], unet(unet_input), strict=True))


def test_decode_stops_at_the_level(unet, unet_input):
    skips = u.encode(unet, unet_input)
    (one,) = u.decode(unet, skips, levels=1)
    assert torch.equal(one, u.decode(unet, skips)[0])
    assert u.decode(unet, skips, levels=0) == []
    with pytest.raises(ValueError, match="levels: found 3, allowed: 0 to 2"):
        u.decode(unet, skips, levels=3)


def test_without_skips_the_skips_do_not_count(unet, unet_input):
    skips = u.encode(unet, unet_input)
    other = [torch.full_like(x, torch.nan) for x in skips[:-1]] + skips[-1:]
    found = u.decode(unet, other, use_skips=False)
    assert torch.equal(found[-1], u.decode(unet, skips, use_skips=False)[-1])
    zeros = [torch.zeros_like(x) for x in skips[:-1]] + skips[-1:]
    torch.testing.assert_close(found[-1], u.decode(unet, zeros)[-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[-1], u.decode(unet, skips)[-1])


def test_without_skips_their_halves_get_no_gradient_and_parameters_stay(unet, unet_input):
    """The same gradient as with zeros in their place; twice, since weights are swapped inside."""
    before = {key: id(tensor) for key, tensor in unet.state_dict(keep_vars=True).items()}
    gradients = []
    for zeros in (False, True, False):
        unet.zero_grad()
        skips = u.encode(unet, unet_input)
        skips = [x * 0 for x in skips[:-1]] + skips[-1:]
        u.decode(unet, skips, use_skips=zeros)[-1].square().sum().backward()
        named = unet.named_parameters()
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    assert {key: id(tensor) for key, tensor in unet.state_dict(keep_vars=True).items()} == before
    for name, count in u.inputs_without_skips(unet).items():
        gradient = gradients[0][name]
        assert gradient.shape[1] == 2 * count
        assert gradient[:, :count].any()
        assert not gradient[:, count:].any()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-3)
        assert torch.equal(gradient, gradients[2][name])


def test_weights_that_read_skips_are_named_once(unet):
    found = u.inputs_without_skips(unet)
    assert list(found) == [f"decoder.stages.{level}.convs.0.conv.weight" for level in range(2)]
    assert list(found.values()) == [6, 4]


TRAINED = {
    "encoder": (u.Trained(), {"encoder"}),
    "all": (u.Trained(None, None, output=True), {"encoder", "decoder", "last output"}),
    "decoder": (u.Trained(0, None), {"decoder"}),
    "first": (u.Trained(1), {"first stage"}),
    "one level": (u.Trained(0, 1, output=True), {"one level"}),
}


def _belongs(name, parts):
    """Membership written out by hand for the networks of the fixtures (three stages)."""
    first = name.startswith(("encoder.stem.", "encoder.stages.0."))
    decoder = name.startswith(("decoder.stages.", "decoder.transpconvs."))
    low = name.startswith(("decoder.stages.0.", "decoder.transpconvs.0.", "decoder.seg_layers.0."))
    return (
        ("encoder" in parts and name.startswith("encoder."))
        or ("decoder" in parts and decoder)
        or ("last output" in parts and name.startswith("decoder.seg_layers.1."))
        or ("first stage" in parts and first)
        or ("one level" in parts and low)
    )


@pytest.mark.parametrize("case", TRAINED)
def test_freeze_untrained_leaves_exactly_the_trained_parts(unet, case):
    trained, parts = TRAINED[case]
    unet.decoder.requires_grad_(False)  # a former choice does not matter
    u.freeze_untrained(unet, trained)
    assert _trainable(unet) == {n for n, _ in unet.named_parameters() if _belongs(n, parts)}
    assert _trainable(unet)


@pytest.mark.parametrize("case", TRAINED)
def test_trained_keys_name_each_tensor_once(unet, case):
    trained, _ = TRAINED[case]
    u.freeze_untrained(unet, trained)
    keys = u.trained_keys(unet, trained)
    assert set(keys) == _trainable(unet)
    assert len(keys) == len(set(keys))


def test_trained_keys_hold_buffers_too(make_unet):
    network = make_unet(2)
    network.encoder.stages[0].add_module("statistics", nn.BatchNorm2d(4))
    assert "encoder.stages.0.statistics.running_mean" in u.trained_keys(network, u.Trained(1))


def test_every_trained_parameter_gets_a_gradient(unet, unet_input):
    u.freeze_untrained(unet, u.Trained(None, 1, output=True))
    (low,) = u.decode(unet, u.encode(unet, unet_input), levels=1)
    u.project_out(unet, low, 0).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (u.Trained(encoder_stages=4), "encoder_stages: found 4, allowed: 0 to 3"),
        (u.Trained(decoder_levels=-1), "decoder_levels: found -1, allowed: 0 to 2"),
        (u.Trained(output=True), "output: found True with decoder_levels 0"),
    ],
)
def test_impossible_parts_are_refused(make_unet, trained, message):
    with pytest.raises(ValueError, match=message):
        u.freeze_untrained(make_unet(2), trained)


def test_plain_state_dict_has_all_keys_and_each_storage_once(unet):
    plain = u.plain_state_dict(unet)
    assert list(plain) == list(unet.state_dict())
    for keys in _aliases(unet):
        assert len({plain[key].data_ptr() for key in keys}) == 1
    assert len({tensor.data_ptr() for tensor in plain.values()}) == len(_aliases(unet))
    assert not any(tensor.requires_grad for tensor in plain.values())


def test_plain_state_dict_is_a_contiguous_copy(make_unet):
    network = make_unet(2).to(memory_format=torch.channels_last)
    plain = u.plain_state_dict(network)
    before = {key: tensor.clone() for key, tensor in plain.items()}
    assert all(tensor.is_contiguous() for tensor in plain.values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(plain[key], before[key]) for key in plain)


def test_plain_state_dict_is_taken_by_stock_loading(unet, make_unet, tmp_path):
    load = pytest.importorskip("nnunetv2.run.load_pretrained_weights").load_pretrained_weights
    weights = u.plain_state_dict(unet)
    torch.save({"network_weights": weights}, tmp_path / "checkpoint_final.pth")
    read = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(read[key], weights[key]) for key in weights)
    storage = sum(p.numel() * p.element_size() for p in unet.parameters())
    assert (tmp_path / "checkpoint_final.pth").stat().st_size < 2 * storage + 100_000
    fresh = make_unet(
        len(u.strides(unet)[0]), hasattr(unet.encoder, "stem"), channels=2, classes=5, seed=7
    )
    load(fresh, str(tmp_path / "checkpoint_final.pth"))
    for key, tensor in fresh.state_dict().items():
        assert ".seg_layers." in key or torch.equal(tensor, weights[key]), key


def test_compile_parts_leaves_the_keys(unet):
    keys = list(unet.state_dict())
    u.compile_parts(unet)
    assert list(unet.state_dict()) == keys
    parts = [*unet.encoder.stages, *unet.decoder.stages]
    parts += [unet.encoder.stem] if hasattr(unet.encoder, "stem") else []
    assert all(part._compiled_call_impl is not None for part in parts)
    assert list(copy.deepcopy(unet).state_dict()) == keys


def test_compiled_parts_compute_the_same(make_unet, monkeypatch):
    compiled = []

    def compile_eagerly(function, *_, **__):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    network, x = make_unet(2, residual=True), torch.randn(2, 1, 16, 16)
    expected = [u.decode(network, u.encode(network, x), use_skips=s)[-1] for s in (True, False)]
    u.compile_parts(network)
    assert len(compiled) == 1 + 3 + 2
    for skips, before in zip((True, False), expected, strict=True):
        assert torch.equal(u.decode(network, u.encode(network, x), use_skips=skips)[-1], before)


def test_numbers_of_the_network(make_unet):
    network = make_unet(3, residual=True)
    assert u.strides(network) == [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    assert u.total_stride(network) == [2, 4, 4]
    assert u.output_channels(network) == [4, 6, 8]


def test_stages_share_out_the_encoder(unet):
    stages = u.encoder_stage_parameters(unet)
    assert len(stages) == 3
    assert {id(p) for stage in stages for p in stage} == {id(p) for p in unet.encoder.parameters()}
    first = next(iter(unet.encoder.parameters()))  # of the stem, where there is one
    assert any(first is parameter for parameter in stages[0])
    for module, stage in zip(unet.encoder.stages[1:], stages[1:], strict=True):
        assert {id(p) for p in stage} == {id(p) for p in module.parameters()}


def test_a_stage_that_the_encoder_has_not_is_named(make_unet):
    u.check_stage(make_unet(2), 2)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"stage: found {wrong}, allowed are 0 to 2 or null"):
            u.check_stage(make_unet(2), wrong)


def test_sizes_of_stages_and_what_the_strides_divide(make_unet):
    network = make_unet(3)  # strides 1, 2, (1, 2, 2)
    features = u.encode(network, torch.zeros(1, 1, 8, 16, 24))
    assert u.stage_sizes(network, (8, 16, 24)) == [list(f.shape[2:]) for f in features]
    assert u.fitting_size(network, (8, 16, 24)) == [8, 16, 24]
    assert u.fitting_size(network, (3, 11, 1)) == [4, 12, 8]


def test_encoder_modules_are_the_encoders_own(unet):
    modules = u.encoder_modules(unet)
    assert len(modules) == len({id(module) for module in modules})
    assert unet.encoder.stages in modules
    assert unet.decoder.stages not in modules
