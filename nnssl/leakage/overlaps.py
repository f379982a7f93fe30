"""Public datasets that share images under different names: `nnssl_configs/overlaps.yaml`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nnssl.convert.spec import INSTALLED

FILE = INSTALLED / "overlaps.yaml"


@dataclass(frozen=True)
class Overlap:
    """Two datasets of origin, as they are named in a study, that share images.

    Attributes:
        seen: the one that pre-training saw.
        evaluated: the one of the evaluation.
        what: what they share.
        source: who says so.
    """

    seen: str
    evaluated: str
    what: str
    source: str


def known_overlaps(
    seen: Iterable[str], evaluated: Iterable[str], file: Path = FILE
) -> list[Overlap]:
    """Entries of the table for any pair of differently named datasets of origin.

    Raises:
        ValueError: the table is broken; file and entry are named.
    """
    names, table = _table(file)
    found = []
    for one in sorted(set(seen)):
        for other in sorted(set(evaluated)):
            pair = frozenset(names.get(_plain(each), _plain(each)) for each in (one, other))
            if _plain(one) != _plain(other) and len(pair) == 1:
                found.append(Overlap(one, other, "two names of one dataset", str(file)))
            elif pair in table:
                found.append(Overlap(one, other, *table[pair]))
    return found


@functools.cache
def _table(file: Path) -> tuple[dict[str, str], dict[frozenset[str], tuple[str, str]]]:
    """Plain name -> plain canonical name; pair of canonical names -> what, source."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        names = {
            _plain(name): _plain(canonical)
            for canonical, others in content["names"].items()
            for name in (canonical, *others)
        }
        return names, dict(_entry(entry, names) for entry in content["overlaps"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: needs the mappings 'names' and 'overlaps', each overlap with between (two of "
            f"the names), what and source; found a fault at {error}"
        ) from error


def _entry(
    entry: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[frozenset[str], tuple[str, str]]:
    pair = frozenset(names[_plain(name)] for name in entry["between"])
    return pair, (entry["what"], entry["source"])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
