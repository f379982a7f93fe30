"""Counted generators: stable, independent, and nothing else enters."""

from __future__ import annotations

import pytest
import torch

from nnssl.views.randomness import generator, torch_generator

KEY = torch.tensor([1, 2, 0, 5])


def test_the_same_key_and_salt_give_the_same_stream_on_every_machine() -> None:
    drawn = generator(KEY, "global_0", "noise").bit_generator.random_raw()
    assert drawn == 2435762689052704935


def test_every_part_of_key_and_salt_matters() -> None:
    keys = [KEY, KEY.flip(0), *(KEY + torch.eye(4, dtype=torch.int64))]
    salts = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("1",), (1,)]
    drawn = {generator(key, *salt).integers(0, 2**62) for key in keys for salt in salts}
    assert len(drawn) == len(keys) * len(salts)


def test_negative_and_large_keys_work() -> None:
    generator(torch.tensor([-1, 2**62, 0, 0]), "x").random()


def test_torch_generator_repeats_and_differs() -> None:
    fields = [
        torch.randn(5, generator=torch_generator(KEY, "cpu", salt)) for salt in ("a", "a", "b")
    ]
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    torch_generator(KEY, "cpu", "a")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("key", [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4)])
def test_what_is_not_one_row_of_integers_is_refused(key: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one row of batch"):
        generator(key, "a")
