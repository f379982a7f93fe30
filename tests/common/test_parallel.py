"""The same function for many items."""

from __future__ import annotations

import os

import pytest

from nnssl.common.parallel import for_each


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_errors(workers: int):
    assert for_each(int, ["3", "1", "2"], workers, "test") == [3, 1, 2]
    with pytest.raises(ValueError, match="invalid literal"):
        for_each(int, ["3", "x", "2"], workers, "test")


def test_a_dead_worker_is_an_error():
    with pytest.raises(ChildProcessError, match="worker process died"):
        for_each(os._exit, [1, 1], 2, "test")


def test_workers_must_be_positive():
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        for_each(int, [], 0, "test")
