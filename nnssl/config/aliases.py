"""Former spellings of knobs, which files, overrides and checkpoints may still use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

# Former path -> path now, in the same section.
ALIASES: dict[str, str] = {
    "training.crop": "training.patch_size",
    "sampling.spread": "sampling.centre_spread",
    "sampling.min_occupancy": "sampling.min_tissue",
}
# Path of a knob that is gone -> the only value that it could have; * is any group.
GONE = {"views.*.kind": "random"}


def rename_knobs(sections: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Returns a copy of `sections` in which every knob has its spelling of today.

    Args:
        sections: content of a file, or the sections of a stored configuration.
        where: what the warnings name; None: no warnings, nobody can change what is stored.

    Raises:
        ValueError: a knob stands there in both spellings.
    """
    copy = deepcopy(dict(sections))
    for former, now in ALIASES.items():
        old, new = former.rpartition(".")[2], now.rpartition(".")[2]
        for path, values in _find_holders(copy, former, old):
            if new in values:
                raise ValueError(
                    f"{where}: {path}.{old} is the former spelling of {path}.{new}; "
                    "both are given, keep the latter"
                )
            if where is not None:
                warn(f"{where}: {path}.{old} is now called {path}.{new}")
            values[new] = values.pop(old)
    for gone, only in GONE.items():
        knob = gone.rpartition(".")[2]
        for _, values in _find_holders(copy, gone, knob):
            if values[knob] == only:
                del values[knob]
    return copy


def former_paths(path: str) -> list[str]:
    """Former spellings of a knob's path."""
    holder = path.rpartition(".")[0]
    return [
        f"{holder}.{former.rpartition('.')[2]}"
        for former, now in ALIASES.items()
        if fnmatchcase(path, now)
    ]


@cache
def warn(text: str) -> None:
    """Prints one line, once."""
    print(f"Warning: {text}", file=sys.stderr)


def _find_holders(
    sections: Mapping[str, Any], path: str, knob: str
) -> list[tuple[str, dict[str, Any]]]:
    """The section, or the groups of a section, in which the knob of a path stands."""
    section, *group, _ = path.split(".")
    values = sections.get(section)
    holders = {section: values}
    if group:
        groups = values if isinstance(values, dict) else {}
        holders = {f"{section}.{name}": each for name, each in groups.items()}
    return [(p, each) for p, each in holders.items() if isinstance(each, dict) and knob in each]
