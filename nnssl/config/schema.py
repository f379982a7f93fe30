"""Which callable takes which values of a file: sections, choices by name, groups of views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.common.checks import Knob, find_knobs, suggest

SELECTOR = "name"
ABSENT = "<absent>"


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

    def allowed(self, given: Collection[str]) -> dict[str, Knob]:
        """Returns the knobs that a file may set here."""
        return find_knobs(self.function, (*given, SELECTOR) if self.choices else given)


def find_targets(
    sections: Mapping[str, Any],
    schema: Schema,
    origin: Callable[[str], str],
    problems: list[str],
) -> Iterator[KnobTarget]:
    for name, section in schema.items():
        values = sections.get(name)
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            problems.append(f"{name} = {values!r} in {origin(name)}: must be a mapping")
        elif isinstance(section, Groups):
            for group, knobs_of_group in values.items():
                path = f"{name}.{group}"
                if isinstance(knobs_of_group, Mapping) and "." not in str(group):
                    yield KnobTarget(path, section.function, knobs_of_group)
                elif knobs_of_group is not None:
                    problems.append(
                        f"{path} = {knobs_of_group!r} in {origin(path)}: must be a mapping of knobs"
                    )
        elif not isinstance(section, Mapping):
            yield KnobTarget(name, section, values)
        elif isinstance(choice := values.get(SELECTOR, ABSENT), str) and choice in section:
            yield KnobTarget(name, section[choice], values, tuple(section))
        else:
            path = f"{name}.{SELECTOR}"
            problems.append(
                f"{path} = {choice!r} in {origin(path)}: unknown{suggest(str(choice), section)}; "
                f"allowed: {', '.join(section)}"
            )
