"""Public datasets that share images under different names: `nnssl_configs/overlaps.yaml`."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nnssl.config.files import INSTALLED, read_yaml

FILE = INSTALLED / "overlaps.yaml"


class Overlap(NamedTuple):
    """Two datasets of origin, as they are named in a study, that share images."""

    seen: str
    evaluated: str
    what: str  # what they share
    source: str  # who says so


def find_overlaps(
    seen: Iterable[str], evaluated: Iterable[str], file: Path = FILE
) -> list[Overlap]:
    """Entries of the table for any pair of differently named datasets of origin."""
    names, table = _read_table(file)
    found = []
    for one, other in itertools.product(sorted(set(seen)), sorted(set(evaluated))):
        pair = frozenset(names.get(_simplify(each), _simplify(each)) for each in (one, other))
        if _simplify(one) != _simplify(other) and len(pair) == 1:
            found.append(Overlap(one, other, "two names of one dataset", str(file)))
        elif pair in table:
            found.append(Overlap(one, other, *table[pair]))
    return found


@functools.cache
def _read_table(file: Path) -> tuple[dict[str, str], dict[frozenset[str], tuple[str, str]]]:
    """Simple name -> simple canonical name; pair of canonical names -> what, source."""
    content = read_yaml(file)
    try:
        names = {
            _simplify(name): _simplify(canonical)
            for canonical, others in content["names"].items()
            for name in (canonical, *others)
        }
        return names, {
            frozenset(names[_simplify(name)] for name in entry["between"]): (
                entry["what"],
                entry["source"],
            )
            for entry in content["overlaps"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: needs the mappings 'names' and 'overlaps', each overlap with between (two of "
            f"the names), what and source; found a fault at {error}"
        ) from error


def _simplify(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
