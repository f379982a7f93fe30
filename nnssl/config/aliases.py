"""Former spellings of knobs, which files, overrides and checkpoints may still use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
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
        knob, name = former.rpartition(".")[2], now.rpartition(".")[2]
        for path, values in _holders(copy, former):
            if knob not in values:
                continue
            if name in values:
                raise ValueError(
                    f"{where}: {path}.{knob} is the former spelling of {path}.{name}; "
                    "both are given, keep the latter"
                )
            if where is not None:
                warn(f"{where}: {path}.{knob} is now called {path}.{name}")
            items = [(name if key == knob else key, value) for key, value in values.items()]
            values.clear()
            values.update(items)
    for gone, only in GONE.items():
        knob = gone.rpartition(".")[2]
        for _, values in _holders(copy, gone):
            if values.get(knob) == only:
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


def _holders(sections: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections, or groups of a section, in which the last name of a path may stand."""
    section, *group, _ = path.split(".")
    values = sections.get(section)
    if not isinstance(values, dict):
        return
    if not group:
        yield section, values
    else:
        yield from ((f"{section}.{k}", v) for k, v in values.items() if isinstance(v, dict))
