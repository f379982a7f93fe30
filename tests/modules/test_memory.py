"""The momentum copy follows its formula; the ring buffer, in one process and in two."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from torch import nn

from nnssl.modules.memory import MemoryBank, MomentumCopy, rise_to_one


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


def test_momentum_rises_along_a_cosine():
    shares = [rise_to_one(0.9, progress) for progress in (0, 1 / 3, 0.5, 1, 1.5)]
    assert shares == pytest.approx([0.9, 0.925, 0.95, 1, 1])  # cos(60 deg) = 1/2


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


def test_buffers_are_taken_over():
    online = _online()
    target = MomentumCopy(online)
    online(torch.randn(8, 3) + 5)
    target.update(0.99)
    assert torch.equal(target.module[1].running_mean, online[1].running_mean)
    assert int(target.module[1].num_batches_tracked) == 1


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


# The memory bank.


def _rows(start, count):
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 2)


def _stored(bank):
    return sorted(bank.read()[:, 0].tolist())


def test_keeps_the_newest():
    bank, expected, start = MemoryBank(5, 2), deque(maxlen=5), 0
    for count in (2, 2, 3, 1, 5, 4, 12, 3):
        bank.enqueue(_rows(start, count))
        expected.extend(range(start, start + count))
        start += count
        assert _stored(bank) == sorted(expected)
        assert torch.equal(bank.read()[:, 0], bank.read()[:, 1])
        assert torch.equal(bank.values[bank.is_filled()], bank.read())


def test_begins_empty():
    assert MemoryBank(5, 2).read().shape == (0, 2)


def test_reading_gives_a_detached_copy():
    bank = MemoryBank(3, 2)
    bank.enqueue(_rows(1, 2).clone().requires_grad_())
    read = bank.read()
    bank.enqueue(_rows(7, 3))
    assert sorted(read[:, 0].tolist()) == [1, 2]
    assert not read.requires_grad


def test_state_dict_round_trip():
    bank, other = MemoryBank(3, 2), MemoryBank(3, 2)
    bank.enqueue(_rows(1, 4))
    other.load_state_dict(bank.state_dict())
    for one in (bank, other):
        one.enqueue(_rows(8, 2))
    assert torch.equal(bank.read(), other.read())
    assert _stored(other) == [4, 8, 9]


def test_half_precision_is_taken():
    bank = MemoryBank(3, 2)
    bank.enqueue(_rows(1, 2).bfloat16())
    assert bank.read().dtype == torch.float32


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"found shape \(4, 3\), allowed: \(n, 2\)"):
        MemoryBank(5, 2).enqueue(torch.zeros(4, 3))


def _one_rank(rank):
    bank = MemoryBank(5, 2)
    for step in range(2):
        bank.enqueue(_rows(10 * step + 2 * rank, 2))
    return bank.state_dict()


def test_two_ranks_hold_the_same(two_processes):
    """Step 0 puts 0 1 | 2 3, step 1 puts 10 11 | 12 13; the last five are 3 10 11 12 13."""
    first, second = two_processes(_one_rank)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert sorted(first["values"][:, 0].tolist()) == [3, 10, 11, 12, 13]
