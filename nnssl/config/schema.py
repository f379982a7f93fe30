"""Which callable takes which values of a file: sections, choices by name, groups of views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.config.binding import Knob, knobs, near

ABSENT = "<absent>"


@dataclass(frozen=True)
class Groups:
    """A section of named groups, each bound to the callable that its own `kind` chooses."""

    choices: Mapping[str, Callable[..., Any]]
    default: str = "random"


Section = Callable[..., Any] | Mapping[str, Callable[..., Any]] | Groups
Schema = Mapping[str, Section]


@dataclass(frozen=True)
class KnobTarget:
    """Values that one callable takes: a section, or a group of a section."""

    path: str
    function: Callable[..., Any]
    values: Mapping[str, Any]
    selector: str | None = None

    def allowed(self, given: Collection[str]) -> dict[str, Knob]:
        """Returns the knobs that a file may set here."""
        return knobs(self.function, (*given, self.selector or ""))


def targets(
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
                if knobs_of_group is not None:
                    yield from _group(name, group, knobs_of_group, section, origin, problems)
        elif isinstance(section, Mapping):
            yield from _choose(name, "name", values, section, origin, problems)
        else:
            yield KnobTarget(name, section, values)


def _group(
    name: str,
    group: str,
    values: Any,
    section: Groups,
    origin: Callable[[str], str],
    problems: list[str],
) -> Iterator[KnobTarget]:
    path = f"{name}.{group}"
    if not isinstance(values, Mapping) or "." in str(group):
        problems.append(f"{path} = {values!r} in {origin(path)}: must be a mapping of knobs")
        return
    values = {"kind": section.default, **values}
    yield from _choose(path, "kind", values, section.choices, origin, problems)


def _choose(
    path: str,
    selector: str,
    values: Mapping[str, Any],
    choices: Mapping[str, Callable[..., Any]],
    origin: Callable[[str], str],
    problems: list[str],
) -> Iterator[KnobTarget]:
    choice = values.get(selector, ABSENT)
    if isinstance(choice, str) and choice in choices:
        yield KnobTarget(path, choices[choice], values, selector)
        return
    full = f"{path}.{selector}"
    problems.append(
        f"{full} = {choice!r} in {origin(full)}: unknown{near(str(choice), choices)}; "
        f"allowed: {', '.join(choices)}"
    )
