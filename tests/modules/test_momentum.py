"""The momentum copy follows its formula and stays apart from the online module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnssl.modules.momentum import MomentumCopy


def _online():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _shift(module, amount):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount)


def test_begins_as_an_equal_copy_without_gradient():
    online = _online()
    target = MomentumCopy(online)
    for key, tensor in target.module.state_dict().items():
        assert torch.equal(tensor, online.state_dict()[key])
        assert tensor.data_ptr() != online.state_dict()[key].data_ptr()
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())


def test_update_is_the_moving_average():
    """Online weights are 1 above the copy: 0.9 t + 0.1 (t + 1) = t + 0.1, then t + 0.19."""
    online = _online()
    target = MomentumCopy(online)
    before = [p.clone() for p in target.parameters()]
    _shift(online, 1.0)
    for step in (0.1, 0.19):
        target.update(0.9)
        for old, new in zip(before, target.parameters(), strict=True):
            torch.testing.assert_close(new, old + step)


def test_ends_of_the_range():
    online = _online()
    target = MomentumCopy(online)
    before = copy.deepcopy(target.module.state_dict())
    _shift(online, 1.0)
    target.update(1)
    assert all(torch.equal(p, before[name]) for name, p in target.module.named_parameters())
    target.update(0)
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(ValueError, match=r"momentum: found 1.5, allowed: 0 to 1"):
        target.update(1.5)


def test_buffers_are_taken_over():
    online = _online()
    target = MomentumCopy(online)
    online(torch.randn(8, 3) + 5)
    target.update(0.99)
    assert torch.equal(target.module[1].running_mean, online[1].running_mean)
    assert int(target.module[1].num_batches_tracked) == 1


def test_forward_is_that_of_the_copy():
    online = _online().eval()
    target = MomentumCopy(online)
    x = torch.randn(5, 3, requires_grad=True)
    expected = online(x)
    _shift(online, 1.0)
    assert torch.equal(target(x), expected)
    assert not target(x).requires_grad


def test_the_online_module_is_not_part_of_it():
    target = MomentumCopy(_online())
    assert all(key.startswith("module.") for key in target.state_dict())
    assert len(list(target.parameters())) == 4


def test_a_copied_objective_follows_its_own_online_module():
    whole = nn.Module()
    whole.online = _online()
    whole.target = MomentumCopy(whole.online)
    other = copy.deepcopy(whole)
    _shift(other.online, 1.0)
    whole.target.update(0.5)
    other.target.update(0)
    assert torch.equal(whole.target.module[0].weight, whole.online[0].weight)
    assert torch.equal(other.target.module[0].weight, other.online[0].weight)


def test_the_aliases_of_a_unet_stay_aliases(make_unet):
    online = make_unet(2)
    target = MomentumCopy(online)
    assert target.module.decoder.encoder is target.module.encoder
    before = [p.clone() for p in online.parameters()]
    _shift(online, 1.0)
    target.update(0.5)
    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)
