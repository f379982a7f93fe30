"""What a file holds, checked before anything walks through it: how much it is, of which types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import chain
from reprlib import repr as shorten
from typing import Any, TypeVar

MOST_VALUES = 10**7  # in one file, everything written out as often as it is referred to
MOST_LEVELS = 100  # of containers in containers
WORDS = {  # pydantic's name of an error -> what is allowed there
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
}
T = TypeVar("T")


def open_container(value: Any) -> Iterable[Any] | None:
    """What a container holds, keys included; None for a single value."""
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    return value if isinstance(value, list | tuple | set | frozenset) else None


def check_size(
    value: Any, where: str, inside: Callable[[Any], Iterable[Any] | None] = open_container
) -> None:
    """Refuse content that fits into a small file and into no memory: containers that are shared.

    Ten lists that hold the next one ten times are a few bytes, and ten billion values for all who
    walk through them.

    Args:
        value: the content.
        where: the file, for the message.
        inside: what a container holds; None for a single value.

    Raises:
        ValueError: more than `MOST_VALUES` values, more than `MOST_LEVELS` levels, or no end.
    """
    known: dict[int, tuple[float, float]] = {}  # values and levels of each container
    no_end = (float("inf"), float("inf"))

    def measure(item: Any, level: int) -> tuple[float, float]:
        parts = inside(item)
        if parts is None:
            return 1, 0
        if level > MOST_LEVELS:
            return no_end
        if id(item) not in known:
            known[id(item)] = no_end  # stays where it holds itself
            sizes = [measure(part, level + 1) for part in parts]
            deepest = max((below for _, below in sizes), default=0)
            known[id(item)] = 1 + sum(count for count, _ in sizes), 1 + deepest
        return known[id(item)]

    values, levels = measure(value, 0)
    if values > MOST_VALUES or levels > MOST_LEVELS:
        raise ValueError(
            f"{where} holds lists or mappings in one another without end; allowed are "
            f"{MOST_LEVELS} levels and {MOST_VALUES:,} values, counted as often as they are used"
        )


def check_content(value: T, kind: Any, where: str) -> T:
    """Returns `value` if it is of a type, which is written as an annotation (often a TypedDict).

    Further keys are allowed. Nothing is converted but that an integer is a number.

    Raises:
        ValueError: with the place, what was found and what is allowed.
    """
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValueError as error:
        raise ValueError(f"{where}{_explain(error)}") from None
    return value


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # 0.1 s, which `--help` does not need

    return TypeAdapter(kind)


def _explain(error: Any) -> str:
    """The first thing that is wrong: `, [0].train: found 3, allowed is a list`."""
    first = error.errors(include_url=False)[0]
    parts = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
    place = "".join(parts).removeprefix(".")
    place = f", {place}" if place else ""
    if first["type"] == "missing":
        return f"{place}: is missing"
    found = f"{shorten(first['input'])} ({type(first['input']).__name__})"
    words = first["msg"].removeprefix("Value error, ").replace("Input should be ", "")
    return f"{place}: found {found}, allowed is {WORDS.get(first['type'], words)}"
