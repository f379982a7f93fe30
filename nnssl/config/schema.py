"""Which callable takes which values of a file: sections, choices by name, groups of views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.common.checks import Knob, check_values, find_knobs, suggest

SELECTOR = "name"
PARTS = "parts"


@dataclass(frozen=True)
class Groups:
    """A section of named groups (of views, for instance), each bound to the same callable."""

    function: Callable[..., Any]


Section = Callable[..., Any] | Mapping[str, Callable[..., Any]] | Groups
Schema = Mapping[str, Section]


@dataclass(frozen=True)
class KnobTarget:
    """Values that one callable takes: a section, or a group of a section.

    Attributes:
        choices: the callables among which the section's own `name` chose this one.
        beside: another callable, which takes some of the values.
    """

    path: str
    function: Callable[..., Any]
    values: Mapping[str, Any]
    choices: Collection[str] = ()
    beside: Callable[..., Any] | None = None

    @property
    def selected(self) -> dict[str, Any]:
        """The section's own `name`, where it chose, and its `parts`, which are targets too."""
        joined: dict[str, Any] = {PARTS: {}} if hasattr(self.function, "Part") else {}
        return {SELECTOR: self.values[SELECTOR], **joined} if self.choices else {}

    def find_knobs(self, given: Collection[str]) -> dict[str, Knob]:
        """The knobs that a file may set here."""
        beside = {} if self.beside is None else find_knobs(self.beside)
        return beside | find_knobs(self.function, (*given, *self.selected))

    def bind(self, given: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The values with defaults filled in; and path -> what is wrong there."""
        values = {name: v for name, v in self.values.items() if name not in self.selected}
        bound: dict[str, Any] = dict(self.selected)
        wrong: dict[str, str] = {}
        if self.beside is not None:
            own = {name: values.pop(name) for name in find_knobs(self.beside) if name in values}
            bound, wrong = check_values(self.beside, own)
        more, wrong_here = check_values(self.function, values, (*given, *self.selected))
        wrong |= wrong_here
        return bound | more, {f"{self.path}.{name}": wrong[name] for name in wrong}


def find_targets(
    sections: Mapping[str, Any], schema: Schema
) -> tuple[list[KnobTarget], dict[str, str]]:
    """What takes the values of each section; and path -> why nothing can take those there.

    Where the chosen callable has an attribute `Part`, its `parts` are mappings, by name, for others
    of the section, each of which takes its own knobs and those of `Part`.
    """
    targets: list[KnobTarget] = []
    known = ", ".join(schema)
    wrong = {
        name: f"unknown section{suggest(name, schema)}; allowed: {known}"
        for name in sections
        if name not in schema
    }
    for name, section in schema.items():
        values = sections.get(name)
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            wrong[name] = "must be a mapping"
        elif isinstance(section, Groups):
            for group, knobs in values.items():
                if isinstance(knobs, Mapping) and "." not in str(group):
                    targets.append(KnobTarget(f"{name}.{group}", section.function, knobs))
                elif knobs is not None:
                    wrong[f"{name}.{group}"] = "must be a mapping of knobs"
        elif not isinstance(section, Mapping):
            targets.append(KnobTarget(name, section, values))
        elif isinstance(choice := values.get(SELECTOR), str) and choice in section:
            chosen = section[choice]
            targets.append(KnobTarget(name, chosen, values, tuple(section)))
            if hasattr(chosen, "Part"):
                parts, wrong_parts = _find_parts(f"{name}.{PARTS}", section, chosen, values)
                targets, wrong = [*targets, *parts], wrong | wrong_parts
        else:
            hint = suggest(str(choice), section)
            wrong[f"{name}.{SELECTOR}"] = f"unknown{hint}; allowed: {', '.join(section)}"
    return targets, wrong


def _find_parts(
    path: str,
    section: Mapping[str, Callable[..., Any]],
    joint: Any,
    values: Mapping[str, Any],
) -> tuple[list[KnobTarget], dict[str, str]]:
    """What takes the values of each part of `joint`; and path -> what is wrong there."""
    parts = values.get(PARTS)
    if not isinstance(parts, Mapping):
        return [], {path: "must be a mapping: name of a part -> its knobs"}
    targets: list[KnobTarget] = []
    wrong: dict[str, str] = {}
    allowed = [name for name, function in section.items() if function is not joint]
    for name, knobs in parts.items():
        if name not in allowed:
            hint = suggest(str(name), allowed)
            wrong[f"{path}.{name}"] = f"unknown part{hint}; allowed: {', '.join(allowed)}"
        elif not isinstance(knobs, Mapping):
            wrong[f"{path}.{name}"] = "must be a mapping of knobs"
        else:
            targets.append(KnobTarget(f"{path}.{name}", section[name], knobs, beside=joint.Part))
    return targets, wrong
