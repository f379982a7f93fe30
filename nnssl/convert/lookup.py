"""Label values by lookup: every value is known, or the case is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

OTHER = "other"
Remap = Mapping[Any, int]


class UnknownValuesError(ValueError):
    """Label values that the lookup does not know."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        super().__init__(f"unknown values {values[:10]}")


def targets(remap: Remap, values: np.ndarray) -> np.ndarray:
    """New value of each source value.

    Args:
        remap: Source value, range (``56-70``, both ends included) or ``other`` -> new value. A
            single value goes before a range, a range before ``other``.
        values: Distinct source values.

    Raises:
        UnknownValuesError: Values that no key covers.
    """
    found = [_target(remap, float(value)) for value in values]
    if unknown := [value for value, new in zip(values.tolist(), found, strict=True) if new is None]:
        raise UnknownValuesError(unknown)
    return np.array(found, np.uint8 if max(map(int, remap.values())) < 256 else np.uint16)


def look_up(remap: Remap, array: np.ndarray) -> np.ndarray:
    """Replace every value of a label.

    Raises:
        UnknownValuesError: Values that no key covers.
    """
    values = np.unique(array)
    new: np.ndarray = targets(remap, values)[np.searchsorted(values, array)]
    return new


def check_remap(remap: object, allowed: set[int]) -> None:
    """Refuse keys that are no value, range or ``other``, and values that are no label.

    Raises:
        ValueError: Names the entry.
    """
    if not isinstance(remap, Mapping) or not remap:
        raise ValueError(f"remap is {remap!r}; it must map source values to label values")
    for key, value in remap.items():
        known = isinstance(key, int) or key == OTHER or _range(key)
        if not known or value not in allowed:
            raise ValueError(
                f"remap has {key!r}: {value!r}; allowed: a value, a range such as 56-70 or "
                f"'{OTHER}', to one of {sorted(allowed)}"
            )


def _target(remap: Remap, value: float) -> int | None:
    if value in remap:
        return remap[value]
    for key, new in remap.items():
        if (ends := _range(key)) and ends[0] <= value <= ends[1]:
            return new
    return remap.get(OTHER)


def _range(key: object) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)-(\d+)", key) if isinstance(key, str) else None
    return (int(match[1]), int(match[2])) if match else None
