"""Which callable takes which values of a file: sections, choices by name, groups of views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.common.checks import Knob, check_values, find_knobs, suggest

SELECTOR = "name"


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
    """

    path: str
    function: Callable[..., Any]
    values: Mapping[str, Any]
    choices: Collection[str] = ()

    @property
    def selected(self) -> dict[str, Any]:
        """The section's own `name`, where it chose."""
        return {SELECTOR: self.values[SELECTOR]} if self.choices else {}

    def find_knobs(self, given: Collection[str]) -> dict[str, Knob]:
        """The knobs that a file may set here."""
        return find_knobs(self.function, (*given, *self.selected))

    def bind(self, given: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The values with defaults filled in; and path -> what is wrong there."""
        values = {name: v for name, v in self.values.items() if name not in self.selected}
        bound, wrong = check_values(self.function, values, (*given, *self.selected))
        return {**self.selected, **bound}, {f"{self.path}.{name}": wrong[name] for name in wrong}


def find_targets(
    sections: Mapping[str, Any], schema: Schema
) -> tuple[list[KnobTarget], dict[str, str]]:
    """What takes the values of each section; and path -> why nothing can take those there."""
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
            targets.append(KnobTarget(name, section[choice], values, tuple(section)))
        else:
            hint = suggest(str(choice), section)
            wrong[f"{name}.{SELECTOR}"] = f"unknown{hint}; allowed: {', '.join(section)}"
    return targets, wrong
