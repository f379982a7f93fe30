"""Which errors speak to the user: those that a `raise` of nnSSL gave; others are for programmers.

What is expected to go wrong (a bad knob, a damaged file, weights that do not fit) is raised by
nnSSL's own code as ValueError, RuntimeError or OSError, with a message that says what to do. It is
told alone. What nobody expected comes from elsewhere, or from no `raise` at all (`int("x")`), and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from dis import opname
from typing import TypeVar

from nnssl.common.environment import read_variable

TRACEBACK = "nnssl_traceback"  # variable that asks for the traceback of expected errors too
HINT = f"{TRACEBACK}=1 shows the traceback"
SPEAKING = (ValueError, RuntimeError, OSError)
MARK = "expected_by_nnssl"  # attribute of an error that comes out of another process
Item = TypeVar("Item")
Result = TypeVar("Result")


def is_expected(error: BaseException) -> bool:
    """Whether a `raise` in nnSSL's code gave the error, here or in a process of ours."""
    if not isinstance(error, SPEAKING):
        return False
    if getattr(error, MARK, False):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    ours = str(frame.f_globals.get("__name__", "")).split(".")[0] == "nnssl"
    return ours and opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def wants_traceback() -> bool:
    """Whether the user asks for tracebacks."""
    return read_variable(TRACEBACK) not in (None, "0")


def mark_expected(function: Callable[[Item], Result], item: Item) -> Result:
    """Calls a function in a worker process: an expected error is one in the parent too.

    A traceback does not travel between processes, attributes do.
    """
    try:
        return function(item)
    except Exception as error:
        if is_expected(error):
            setattr(error, MARK, True)
        raise
