"""Overrides of knobs for one run: `nnssl_overrides="num_epochs=2 objective.temperature=0.2"`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from nnssl.common.checks import plain, suggest
from nnssl.config.aliases import former_paths, warn
from nnssl.config.files import parse_yaml
from nnssl.config.schema import SELECTOR, Schema, find_targets

OVERRIDES = "nnssl_overrides"


def apply_overrides(
    sections: dict[str, Any], schema: Schema, given: Collection[str], text: str
) -> tuple[dict[str, Any], list[str]]:
    """Applies the overrides to `sections` in place; what chooses a callable comes first.

    Returns:
        What was set, full path -> value; and what is wrong with the others.
    """
    problems: list[str] = []
    pairs = dict(_parse_overrides(text, problems))
    applied = {}
    for target in find_targets(sections, schema)[0]:
        path = f"{target.path}.{SELECTOR}"
        if target.choices and path in pairs:
            applied[path] = choice = pairs.pop(path)
            same = target.values[SELECTOR] == choice  # another one has other knobs
            place(sections, target.path, {**(target.values if same else {}), SELECTOR: choice})
    paths = [
        f"{target.path}.{name}"
        for target in find_targets(sections, schema)[0]
        for name in target.find_knobs(given)
    ]
    for key, value in pairs.items():
        matches = _matches(key, paths) or _former_matches(key, paths)
        if len(matches) == 1:
            applied[matches[0]] = value
            place(sections, matches[0], value)
        else:
            problems.append(_no_match(key, matches, paths))
    return applied, problems


def write_overrides(overrides: Mapping[str, Any]) -> str:
    """The text of `nnssl_overrides`, which gives these values back."""
    return " ".join(shlex.quote(f"{knob}={_write_value(v)}") for knob, v in overrides.items())


def _write_value(value: Any) -> str:
    """YAML of one value on one line; plain words stand without quotation marks."""
    if isinstance(value, str) and value.isidentifier() and parse_yaml(value, "") == value:
        return value
    return json.dumps(plain(value))


def _matches(key: str, paths: Collection[str]) -> list[str]:
    return [p for p in paths if p == key] or [p for p in paths if p.endswith(f".{key}")]


def _former_matches(key: str, paths: Collection[str]) -> list[str]:
    """What a former spelling means now: the paths of today whose former one the key is."""
    former = {was: path for path in paths for was in former_paths(path)}
    matches = [former[was] for was in _matches(key, former)]
    if len(matches) == 1:
        warn(f"{OVERRIDES}: {key} is now called {matches[0]}")
    return matches


def _no_match(key: str, matches: list[str], paths: list[str]) -> str:
    if matches:
        return f"{OVERRIDES}: {key!r} is ambiguous; write one of {', '.join(matches)}"
    last = key.rpartition(".")[2]
    hints = [p for p in paths if suggest(last, [p.rpartition(".")[2]])]
    hint = f" (did you mean {' or '.join(hints)}?)" if hints else ""
    return f"{OVERRIDES}: {key!r} is no knob{hint}; allowed: {', '.join(paths)}"


def _parse_overrides(text: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        problems.append(f"{OVERRIDES} = {text!r}: {error}")
        return
    for word in words:
        key, equals, value = word.partition("=")
        if key and equals:
            yield key, parse_yaml(value, f"{OVERRIDES}: {word!r}")
        else:
            problems.append(f"{OVERRIDES}: {word!r} must be knob=value")


def place(sections: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path; what is missing on the way is made."""
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(sections.get(parent), dict):
            sections[parent] = {}
        sections = sections[parent]
    sections[last] = value
