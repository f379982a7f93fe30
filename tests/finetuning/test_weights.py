"""Matching, adapting, loading: counts are exact, aliases are written, nothing loads silently."""

from __future__ import annotations

import pytest
import torch

from nnssl.finetuning.weights import find_missing, load, match, wanted_keys
from nnssl.modules.unet import Trained, inputs_without_skips, trained_keys

ENCODER = 1 * 4 * 9 + 3 * 4 + 2 * (6 * 6 * 9 + 3 * 6) - 6 * 2 * 9 + 6 * 8 * 9 + 3 * 8


def filled(network, value):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    return network


def pair(make_unet, residual=False, **target):
    source = filled(make_unet(2, residual), 0.5)
    return source, make_unet(2, residual, **{"seed": 1, "classes": 3, **target})


def encoder_of(network):
    return {k: v for k, v in network.state_dict().items() if k.startswith("encoder.")}


@pytest.mark.parametrize("residual", [False, True])
def test_encoder_is_loaded_under_all_its_names_and_nothing_else(make_unet, residual):
    source, target = pair(make_unet, residual)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    transfer = match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))
    load(target, transfer)
    for key, value in target.state_dict().items():
        if key.startswith(("encoder.", "decoder.encoder.")):
            assert torch.all(value == 0.5), key
        else:
            assert torch.equal(value, before[key]), key
    assert transfer.share == 1.0
    transfer.require(1.0)


def test_parameters_are_counted_once_and_add_up(make_unet):
    source, target = pair(make_unet)
    transfer = match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))
    counts = transfer.to_dict()["parameters"]
    assert counts["loaded"] == sum(p.numel() for p in target.encoder.parameters()) == ENCODER
    assert sum(counts.values()) == sum(p.numel() for p in target.parameters())
    assert f"{ENCODER:,}" in transfer.table()


def test_trained_part_takes_the_decoder_but_never_segmentation_layers(make_unet):
    source, target = pair(make_unet)
    wanted = wanted_keys(target, None, "trained")
    load(target, match(source.state_dict(), target.state_dict(), wanted))
    state = target.state_dict()
    assert torch.all(state["decoder.stages.1.convs.0.conv.weight"] == 0.5)
    assert not torch.any(state["decoder.seg_layers.0.weight"] == 0.5)


def test_the_table_says_why_a_key_stays_random(make_unet):
    network = make_unet(2)
    keys = trained_keys(network, Trained())
    found = match(
        make_unet(2).state_dict(), network.state_dict(), wanted_keys(network, keys, "encoder")
    )
    reasons = {
        each.key.split(".")[1]: each.reason for each in found.matches if each.outcome == "random"
    }
    assert reasons["seg_layers"] == "depends on the labels"
    assert reasons["transpconvs"] == "not asked for"


def test_only_what_was_trained_is_wanted(make_unet):
    _, target = pair(make_unet)
    trained = trained_keys(target, Trained(encoder_stages=2, decoder_levels=1))
    assert {k[:16] for k in wanted_keys(target, trained, "encoder")} == {
        "encoder.stages.0",
        "encoder.stages.1",
    }
    parts = {k.rsplit(".", 4)[0] for k in wanted_keys(target, trained, "trained")}
    assert any(part.startswith("decoder.stages.0") for part in parts)
    assert not any(part.startswith("decoder.stages.1") for part in parts)
    first = wanted_keys(target, trained, "encoder", stages=1)
    assert wanted_keys(target, trained, "trained", stages=1) == first  # and no decoder
    assert {k[:16] for k in first} == {"encoder.stages.0"}
    with pytest.raises(ValueError, match="trained nothing"):
        wanted_keys(target, ["decoder.stages.0.convs.0.conv.weight"], "encoder")
    _, residual = pair(make_unet, residual=True)
    with pytest.raises(ValueError, match=r"another architecture: it trained encoder\.\S+convs"):
        wanted_keys(residual, trained_keys(target, Trained(encoder_stages=2)), "encoder")
    with pytest.raises(ValueError, match="encoder_stages: found 9"):
        wanted_keys(target, None, "encoder", stages=9)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 3)])
def test_equal_channels_give_the_same_response_after_adaptation(make_unet, residual, old, new):
    source = make_unet(2, residual, channels=old)
    target = make_unet(2, residual, channels=new, seed=1)
    transfer = match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))
    assert [m.outcome for m in transfer.matches].count("adapted") == 1
    assert transfer.share == 1.0
    load(target, transfer)
    grey = torch.randn(2, 1, 16, 16)
    expected = source.encoder(grey.expand(-1, old, -1, -1))
    result = target.encoder(grey.expand(-1, new, -1, -1))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_new_channels_of_a_cascade_start_at_zero(make_unet):
    source, target = make_unet(2), make_unet(2, channels=3, seed=1)
    wanted = wanted_keys(target, None, "encoder")
    load(target, match(source.state_dict(), target.state_dict(), wanted, "zero"))
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(target.encoder(image), source.encoder(image[:, :1]))
    fewer = match(target.state_dict(), source.state_dict(), wanted, "zero")
    assert [m.outcome for m in fewer.matches].count("skipped") == 1


def test_only_the_first_convolution_is_adapted(make_unet):
    source, target = pair(make_unet, features=(4, 7, 8))
    transfer = match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))
    outcomes = {m.key: m.outcome for m in transfer.matches}
    assert outcomes["encoder.stages.0.0.convs.0.conv.weight"] == "loaded"
    assert outcomes["encoder.stages.1.0.convs.0.conv.weight"] == "skipped"
    assert outcomes["encoder.stages.2.0.convs.0.conv.weight"] == "skipped"
    assert 0 < transfer.share < 0.5
    with pytest.raises(ValueError, match=r"Only .* can be loaded; weights.min_share"):
        transfer.require(0.5)


def test_another_architecture_fails(make_unet):
    source, target = make_unet(2, True), make_unet(2)
    transfer = match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))
    with pytest.raises(ValueError, match=r"another architecture(.|\n)*not in the source"):
        transfer.require(0.01)
    three = match(
        make_unet(3).state_dict(), target.state_dict(), wanted_keys(target, None, "encoder")
    )
    assert "shape" in three.table()


def test_diverged_source_and_unknown_key(make_unet):
    source, target = pair(make_unet)
    with pytest.raises(ValueError, match="has no"):
        match(source.state_dict(), target.state_dict(), ["encoder.nothing"])
    filled(source, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        match(source.state_dict(), target.state_dict(), wanted_keys(target, None, "encoder"))


@pytest.mark.parametrize("residual", [False, True])
def test_halves_that_were_not_trained_stay_and_are_counted(make_unet, residual):
    """A decoder without skips: its half that reads from below is loaded, the other stays."""
    source, target = pair(make_unet, residual)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    wanted = wanted_keys(target, None, "trained")
    inputs = inputs_without_skips(target)
    transfer = match(source.state_dict(), target.state_dict(), wanted, trained_inputs=inputs)
    load(target, transfer)
    rest = 0
    for key, count in inputs.items():
        weight = target.state_dict()[key]
        assert torch.all(weight[:, :count] == 0.5)
        assert torch.equal(weight[:, count:], before[key][:, count:])
        rest += weight[:, count:].numel()
    counts = transfer.to_dict()["parameters"]
    outputs = sum(p.numel() for n, p in target.named_parameters() if "seg_layers" in n)
    assert counts["random"] == rest + outputs
    assert sum(counts.values()) == sum(p.numel() for p in target.parameters())
    assert transfer.share == 1
    assert f"random{2:>11}{rest:>13,}" in transfer.table()
    assert "pre-training had switched off" in transfer.table()
    encoder = match(
        source.state_dict(),
        target.state_dict(),
        wanted_keys(target, None, "encoder"),
        trained_inputs=inputs,
    )
    assert "switched off" not in encoder.table()


@pytest.mark.parametrize("residual", [False, True])
def test_what_the_source_trained_and_the_target_cannot_take_is_missing(make_unet, residual):
    """Of a plain network in a residual one, and back, only the decoder fits."""
    source, target = make_unet(2, residual), make_unet(2, not residual, seed=1)
    trained = trained_keys(source, Trained(None, None))
    weights, state = source.state_dict(), target.state_dict()
    wanted = wanted_keys(target, trained, "trained")
    missing = find_missing(weights, state, trained, "trained")
    transfer = match(weights, state, wanted, missing=missing)
    encoder = sum(p.numel() for p in source.encoder.parameters())
    decoder = sum(
        weights[k].numel() for k in trained_keys(source, Trained(0, None)) if k in transfer.loaded
    )
    assert sum(m.parameters for m in missing) == encoder
    assert transfer.share == pytest.approx(decoder / (decoder + encoder))
    with pytest.raises(ValueError, match=r"missing .*trained by the source, but"):
        transfer.require(1.0)
    record = transfer.to_dict()
    assert record["share_of_encoder"] == 0
    assert record["share_of_network"] == pytest.approx(
        decoder / sum(p.numel() for p in target.parameters())
    )
    assert record["parameters"]["missing"] == encoder
    assert "0.0% of this network's encoder" in transfer.table()


def test_missing_is_only_what_was_trained_and_asked_for(make_unet):
    deep, target = make_unet(2, features=(4, 6, 8, 10)), make_unet(2)
    weights, keys = deep.state_dict(), target.state_dict()
    everything = find_missing(weights, keys, None, "trained")
    assert {m.key.split(".")[0] for m in everything} == {"encoder", "decoder"}
    assert not any("seg_layers" in m.key for m in everything)
    encoder = find_missing(weights, keys, None, "encoder")
    stage = sum(p.numel() for p in deep.encoder.stages[3].parameters())
    assert sum(m.parameters for m in encoder) == stage
    assert find_missing(weights, keys, None, "trained", stages=3) == []
    assert find_missing(weights, keys, None, "trained", stages=4) == encoder
    assert find_missing(weights, keys, trained_keys(deep, Trained(3)), "trained") == []
    transfer = match(weights, keys, wanted_keys(target, None, "encoder"), missing=encoder)
    assert transfer.share < 1
    assert "100.0% of this network's encoder" in transfer.table()
    assert (
        match(keys, weights, wanted_keys(deep, trained_keys(target, Trained()), "encoder")).share
        == 1
    )


def test_a_smaller_source_is_told_as_a_share_of_the_encoder(make_unet):
    source, target = make_unet(2), make_unet(2, features=(4, 6, 8, 10))
    wanted = wanted_keys(target, trained_keys(source, Trained()), "encoder")
    transfer = match(source.state_dict(), target.state_dict(), wanted)
    whole = sum(p.numel() for p in target.encoder.parameters())
    assert transfer.share == 1
    assert transfer.share_of_encoder == pytest.approx(ENCODER / whole)
