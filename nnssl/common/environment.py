"""Environment variables: read one, set some for a while, hand them to a child process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def read_variable(name: str) -> str | None:
    """The text of a variable; None where it is not set, or empty."""
    return os.environ.get(name) or None


@contextmanager
def set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables while the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def set_default(name: str, value: str) -> None:
    """Sets a variable for this process and its children, unless the user has set it."""
    os.environ.setdefault(name, value)


def child_environment(values: Mapping[str, str]) -> dict[str, str]:
    """This process's variables with some of its own, for a child process."""
    return {**os.environ, **values}
