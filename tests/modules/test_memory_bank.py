"""The ring buffer, in one process and in two."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from nnssl.modules.memory_bank import MemoryBank


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


@pytest.mark.parametrize(
    ("size", "features", "message"), [(0, 2, "size: found 0"), (2, 0, "features: found 0")]
)
def test_empty_banks_are_refused(size, features, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(size, features)


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
