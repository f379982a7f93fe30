"""Which errors speak to the user: those that a `raise` of nnSSL's own code gave."""

from __future__ import annotations

import pytest

from nnssl.common.checks import one_of
from nnssl.common.environment import set_variables
from nnssl.common.errors import TRACEBACK, is_expected, wants_traceback
from nnssl.common.parallel import for_each
from nnssl.nnunet.paths import check_name, dataset_number


def error_of(function, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(*arguments)
    return caught.value


def raise_error(_: object = None) -> None:
    raise ValueError("of others")


def test_a_raise_of_ours_speaks():
    assert is_expected(error_of(check_name, "../x", "--name"))


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (raise_error, None),  # a raise of others
        (dataset_number, "Dataset_X"),  # int("") in our code, without a raise
        (one_of({"a": 1}).func, []),  # a bug: unhashable
    ],
)
def test_others_are_for_programmers(function, argument):
    assert not is_expected(error_of(function, argument))
    assert not is_expected(ValueError("never raised"))


def refuse(name: str) -> None:
    check_name(name, "--name")


def test_worker_processes_tell_what_they_expected():
    assert is_expected(error_of(for_each, refuse, ["a", "../x", "b"], 2, "names"))
    assert not is_expected(error_of(for_each, raise_error, ["a", "b"], 2, "names"))


@pytest.mark.parametrize(("text", "wanted"), [("", False), ("0", False), ("1", True)])
def test_tracebacks_are_asked_for(text, wanted):
    with set_variables({TRACEBACK: text}):
        assert wants_traceback() is wanted
