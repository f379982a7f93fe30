"""Matching, adapting, loading: counts are exact, aliases are written, nothing loads silently."""

from __future__ import annotations

import pytest
import torch

from nnssl.finetuning.weights import Adaptation, Source, asked_keys, fit, load
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


def take(source, target, part="encoder", trained=None, stages=None, inputs=None, **adaptation):
    """Fits a network's weights to another."""
    weights = Source(source.state_dict(), trained, inputs or {})
    asked = asked_keys(target, part, stages)
    return fit(weights, target, asked, Adaptation(**adaptation), stages)


@pytest.mark.parametrize("residual", [False, True])
def test_encoder_is_loaded_under_all_its_names_and_nothing_else(make_unet, residual):
    source, target = pair(make_unet, residual)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    transfer = take(source, target)
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
    transfer = take(source, target)
    counts = transfer.to_dict()["parameters"]
    assert counts["loaded"] == sum(p.numel() for p in target.encoder.parameters()) == ENCODER
    assert sum(counts.values()) == sum(p.numel() for p in target.parameters())
    assert f"{ENCODER:,}" in transfer.table()


def test_trained_part_takes_the_decoder_but_never_segmentation_layers(make_unet):
    source, target = pair(make_unet)
    load(target, take(source, target, "trained"))
    state = target.state_dict()
    assert torch.all(state["decoder.stages.1.convs.0.conv.weight"] == 0.5)
    assert not torch.any(state["decoder.seg_layers.0.weight"] == 0.5)


def test_the_table_says_why_a_key_stays_random(make_unet):
    network = make_unet(2)
    keys = trained_keys(network, Trained())
    found = take(make_unet(2), network, trained=keys)
    reasons = {
        each.key.split(".")[1]: each.reason for each in found.matches if each.outcome == "random"
    }
    assert reasons["seg_layers"] == "depends on the labels"
    assert reasons["transpconvs"] == "not asked for"


def test_only_what_was_trained_is_taken(make_unet):
    source, target = pair(make_unet)
    trained = trained_keys(target, Trained(encoder_stages=2, decoder_levels=1))
    loaded = take(source, target, trained=trained).loaded
    assert {k[:16] for k in loaded} == {"encoder.stages.0", "encoder.stages.1"}
    parts = {k.rsplit(".", 4)[0] for k in take(source, target, "trained", trained).loaded}
    assert any(part.startswith("decoder.stages.0") for part in parts)
    assert not any(part.startswith("decoder.stages.1") for part in parts)
    first = take(source, target, trained=trained, stages=1).loaded
    assert take(source, target, "trained", trained, 1).loaded == first  # and no decoder
    assert {k[:16] for k in first} == {"encoder.stages.0"}
    with pytest.raises(ValueError, match="trained nothing"):
        take(source, target, trained=["decoder.stages.0.convs.0.conv.weight"])
    other, residual = pair(make_unet, residual=True)
    with pytest.raises(ValueError, match=r"another architecture: it trained encoder\.\S+block"):
        take(residual, target, trained=trained_keys(other, Trained(encoder_stages=2)))
    with pytest.raises(ValueError, match="encoder_stages: found 9"):
        asked_keys(target, "encoder", stages=9)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 3)])
def test_equal_channels_give_the_same_response_after_adaptation(make_unet, residual, old, new):
    source = make_unet(2, residual, channels=old)
    target = make_unet(2, residual, channels=new, seed=1)
    transfer = take(source, target)
    assert [m.outcome for m in transfer.matches].count("adapted") == 1
    assert transfer.share == 1.0
    load(target, transfer)
    grey = torch.randn(2, 1, 16, 16)
    expected = source.encoder(grey.expand(-1, old, -1, -1))
    result = target.encoder(grey.expand(-1, new, -1, -1))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_new_channels_of_a_cascade_start_at_zero(make_unet):
    source, target = make_unet(2), make_unet(2, channels=3, seed=1)
    load(target, take(source, target, keeps_channels=True))
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(target.encoder(image), source.encoder(image[:, :1]))


def test_nothing_of_another_dimension_and_block_loads_silently(make_unet):
    source, target = make_unet(2, True), make_unet(2)
    transfer = take(source, target)
    with pytest.raises(ValueError, match=r"another architecture(.|\n)*not in the source"):
        transfer.require(0.01)


def test_diverged_source_and_unknown_key(make_unet):
    source, target = pair(make_unet)
    with pytest.raises(ValueError, match="has no"):
        fit(Source(source.state_dict()), target, ["encoder.nothing"])
    filled(source, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        take(source, target)


@pytest.mark.parametrize("residual", [False, True])
def test_halves_that_were_not_trained_stay_and_are_counted(make_unet, residual):
    """A decoder without skips: its half that reads from below is loaded, the other stays."""
    source, target = pair(make_unet, residual)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    inputs = inputs_without_skips(target)
    transfer = take(source, target, "trained", inputs=inputs)
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
    assert "switched off" not in take(source, target, inputs=inputs).table()


def test_what_the_source_trained_and_the_target_cannot_take_is_missing(make_unet):
    """Of a residual network in a plain one only the decoder fits."""
    source, target = make_unet(2, True), make_unet(2, False, seed=1)
    trained = trained_keys(source, Trained(None, None))
    transfer = take(source, target, "trained", trained)
    encoder = sum(p.numel() for p in source.encoder.parameters())
    decoder = sum(source.state_dict()[key].numel() for key in transfer.loaded)
    assert all(key.startswith("decoder.") for key in transfer.loaded)
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


def test_a_deeper_source_is_aligned_from_the_input_side(make_unet):
    """Its deepest stage and decoder level are missing, the others stand where they belong."""
    deep, target = filled(make_unet(2, features=(4, 6, 8, 10)), 0.5), make_unet(2)
    transfer = take(deep, target, "trained")
    load(target, transfer)
    assert all(torch.all(p == 0.5) for n, p in target.named_parameters() if "seg_layers" not in n)
    stage = sum(p.numel() for p in deep.encoder.stages[3].parameters())
    level = [*deep.decoder.stages[0].parameters(), *deep.decoder.transpconvs[0].parameters()]
    missing = transfer.to_dict()["parameters"]["missing"]
    assert missing == stage + sum(p.numel() for p in level)
    assert take(deep, target, "trained", stages=3).share == 1
    assert take(deep, target, "trained", trained_keys(deep, Trained(3))).share == 1
    assert take(target, deep, trained=trained_keys(target, Trained())).share == 1
    assert "100.0% of this network's encoder" in transfer.table()


def test_a_smaller_source_is_told_as_a_share_of_the_encoder(make_unet):
    source, target = make_unet(2), make_unet(2, features=(4, 6, 8, 10))
    transfer = take(source, target, trained=trained_keys(source, Trained()))
    whole = sum(p.numel() for p in target.encoder.parameters())
    assert transfer.share == 1
    assert transfer.share_of_encoder == pytest.approx(ENCODER / whole)
