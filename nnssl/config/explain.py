"""What the knobs of a trainer mean, read from the signatures and docstrings that declare them."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from nnssl.common.checks import describe
from nnssl.config.config import Config
from nnssl.config.schema import SELECTOR, Schema, find_targets

ENTRIES = re.compile(r"^(?:Args|Attributes):\n((?:[ ]+.*\n|\n)+)", re.MULTILINE)


class Explanation(NamedTuple):
    """A knob in words; `value` is what a trainer without overrides takes, as in YAML."""

    knob: str
    value: str
    allowed: str
    meaning: str


def explain_knobs(
    config: Config, schema: Schema, given: Collection[str] = ()
) -> Iterator[Explanation]:
    """Yields every knob of a configuration that was bound to `schema`, in its order."""
    for target in find_targets(config.sections, schema)[0]:
        beside = {} if target.beside is None else read_meanings(target.beside)
        meanings = beside | read_meanings(target.function)
        if target.choices:
            allowed = f"one of {', '.join(target.choices)}"
            text = inspect.getdoc(target.function) or ""
            path, name = f"{target.path}.{SELECTOR}", str(target.values[SELECTOR])
            yield Explanation(path, name, allowed, text.partition("\n")[0])
        for name, knob in target.find_knobs(given).items():
            value, allowed = target.values[name], describe(knob.annotation)
            text = value if isinstance(value, str) else json.dumps(value)
            yield Explanation(f"{target.path}.{name}", text, allowed, meanings.get(name, ""))


def read_meanings(function: Callable[..., Any]) -> dict[str, str]:
    """Returns parameter -> its text under `Args:` or `Attributes:`, those of base classes too."""
    found: dict[str, str] = {}
    for holder in reversed(inspect.getmro(function) if isinstance(function, type) else [function]):
        for block in ENTRIES.findall(inspect.cleandoc(holder.__doc__ or "") + "\n"):
            for entry in re.split(r"\n(?=\S)", textwrap.dedent(block)):
                names, _, text = entry.partition(":")
                found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found
