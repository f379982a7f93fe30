"""Variables set for a while come back, also after an error; a child gets its own."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from nnssl.common.environment import child_environment, read_variable, set_default, set_variables


def test_variables_are_set_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_a", "before")
    monkeypatch.delenv("nnssl_b", raising=False)
    with suppress(KeyError), set_variables({"nnssl_a": "1", "nnssl_b": "2"}):
        assert (read_variable("nnssl_a"), read_variable("nnssl_b")) == ("1", "2")
        raise KeyError
    assert (read_variable("nnssl_a"), read_variable("nnssl_b")) == ("before", None)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_a", "")
    assert read_variable("nnssl_a") is None


def test_a_child_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_a", "before")
    child = child_environment({"nnssl_a": "child"})
    assert child == {**os.environ, "nnssl_a": "child"}
    set_default("nnssl_a", "default")
    assert read_variable("nnssl_a") == "before"
