"""Checks of the parameters of views; every message names the parameter, the value and the range."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """The value as a float, if it is a number in [low, high].

    Raises:
        ValueError: it is not.
    """
    if _is_number(value) and low <= value <= high:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"{name} is {value!r}; allowed is {_between(low, high)}")


def interval(
    name: str, value: object, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """The value as an ordered pair of floats in [low, high].

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value)):
        first, last = float(value[0]), float(value[1])
        if low <= first <= last <= high:
            return first, last
    raise ValueError(
        f"{name} is {value!r}; allowed are two numbers, the smaller first, "
        f"each {_between(low, high)}"
    )


def whole(name: str, value: object, low: int) -> int:
    """The value as an integer, if it is one and at least `low`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise ValueError(f"{name} is {value!r}; allowed is a whole number of at least {low}")


def flag(name: str, value: object) -> bool:
    """The value, if it is true or false.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} is {value!r}; allowed are true and false")


def per_axis(name: str, value: Sequence[float], dimension: int) -> None:
    """Refuses sequences that do not hold one positive number per axis of the image.

    Raises:
        ValueError: wrong length, or a value that is not above zero.
    """
    if len(value) != dimension or not all(item > 0 for item in value):
        raise ValueError(
            f"{name} is {list(value)}; allowed are {dimension} numbers above 0, one per image axis"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _between(low: float, high: float) -> str:
    bounds = (low > -math.inf) * [f"at least {low:g}"] + (high < math.inf) * [f"at most {high:g}"]
    return " ".join(["a number", "of" * bool(bounds), " and ".join(bounds)]).strip()
