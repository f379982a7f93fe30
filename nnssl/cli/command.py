"""How every command ends: a result, one message, an interruption, or a reader that has gone."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def command(
    name: str, *, resumes: bool = False, errors: tuple[type[Exception], ...] = ()
) -> Callable[[Callable[P, int | None]], Callable[P, int]]:
    """Makes an entry point of a function that does a command's work.

    The entry point returns the exit code (None counts as 0). ValueError and OSError end the
    program with one message and status 1, an interruption with status 130, a closed standard
    output (`nnssl_study list | head`) with status 1 and no message.

    Args:
        name: the command, which begins every message.
        resumes: whether the same command goes on after an interruption; the user is told so.
        errors: further exceptions whose message speaks to the user.
    """

    expected: tuple[type[Exception], ...] = (ValueError, OSError, *errors)

    def decorate(work: Callable[P, int | None]) -> Callable[P, int]:
        @functools.wraps(work)
        def main(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                code = work(*args, **kwargs)
                sys.stdout.flush()
            except KeyboardInterrupt:
                hint = "; the same command goes on where it stopped" if resumes else ""
                print(f"{name}: interrupted{hint}", file=sys.stderr)
                return 130
            except expected as error:
                if isinstance(error, BrokenPipeError) and _reader_has_gone():
                    return 1
                sys.exit(f"{name}: {error}")
            return code or 0

        return main

    return decorate


def _reader_has_gone() -> bool:
    """Whether standard output is closed at its other end; it is silent from then on."""
    try:
        print(flush=True)  # a flush alone may have nothing left to fail on
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
