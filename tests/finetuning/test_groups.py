"""Every parameter is in one group, by what was transferred."""

from __future__ import annotations

import torch

from nnssl.finetuning.groups import parameter_groups
from nnssl.finetuning.weights import wanted_keys


def names(groups):
    return [group["name"] for group in groups]


def test_every_parameter_is_in_exactly_one_group(unet):
    for keys in ([], wanted_keys(unet, None, "encoder"), wanted_keys(unet, None, "trained")):
        groups = parameter_groups(unet, keys)
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in unet.parameters())
        torch.optim.SGD(groups, 0.1)


def test_groups_follow_what_was_transferred(make_unet):
    unet = make_unet(2)
    assert names(parameter_groups(unet, [])) == ["random"]
    assert names(parameter_groups(unet, wanted_keys(unet, None, "encoder"))) == [
        "encoder",
        "random",
    ]
    groups = parameter_groups(unet, wanted_keys(unet, None, "trained"), 0.1, 0.2, 0.3, 5)
    assert names(groups) == ["encoder", "decoder", "random"]
    assert [group["lr_scale"] for group in groups] == [0.1, 0.2, 0.3]
    assert [group["frozen_epochs"] for group in groups] == [5, 0, 0]
    encoder = {id(p) for p in unet.encoder.parameters()}
    assert {id(p) for p in groups[0]["params"]} == encoder
    seg_layers = {id(p) for p in unet.decoder.seg_layers.parameters()}
    assert {id(p) for p in groups[2]["params"]} == seg_layers
    assert all(p.requires_grad for p in unet.parameters())
