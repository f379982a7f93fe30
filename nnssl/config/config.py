"""A YAML file is a trainer: finds, merges, checks and freezes configurations.

A file says `kind: pretrain` or `kind: finetune`, may `extends:` another by its stem, describes
itself in `about:`, and has sections whose knobs are the keyword parameters of what uses them; there
is no second schema. `null` removes an inherited group; `{}` is a group with defaults only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.common.checks import REQUIRED, Knob, MismatchError, describe, fit, plain, suggest
from nnssl.config.aliases import rename_knobs
from nnssl.config.files import RawConfig
from nnssl.config.overrides import OVERRIDES, override
from nnssl.config.schema import SELECTOR, KnobTarget, Schema, find_targets


@dataclass(frozen=True)
class Config:
    """A checked configuration with every default filled in; nothing in it can be changed.

    Attributes:
        name: stem of the YAML file, which is the trainer's name.
        kind: "pretrain" or "finetune".
        about: family, summary, paper, dimensions, bibtex, trains.
        sections: section -> knob -> value (a copy at every access), plain data.
        sources: the files that were merged, the named one first.
        overrides: full knob path -> value, as set for this run by the environment.
    """

    name: str
    kind: str
    about: Mapping[str, Any]
    _sections: Mapping[str, Any] = field(repr=False)
    sources: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, Any]:
        return deepcopy(dict(self._sections))

    def chosen(self, section: str) -> tuple[str, dict[str, Any]]:
        """Returns the name that a section chose, and its other knobs."""
        values: dict[str, Any] = self.sections[section]
        return values.pop(SELECTOR), values

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that JSON, YAML and a checkpoint give back unchanged."""
        values = asdict(self)
        values["sections"] = values.pop("_sections")
        return plain(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Rebuilds what `to_dict` returned, without any file; knobs get their names of today."""
        parts = deepcopy(dict(values))
        sections = rename_knobs(parts.pop("sections"))
        return cls(_sections=sections, sources=tuple(parts.pop("sources")), **parts)


def complete(stored: Config, schema: Schema, given: Collection[str] = ()) -> Config:
    """A stored configuration with the defaults of knobs that did not exist when it was written.

    Raises:
        ValueError: it has a knob that does not exist any more, or a value that is not allowed now.
    """
    layer = Path(f"stored configuration of {stored.name}")
    sections = stored.sections
    raw = RawConfig(stored.name, stored.kind, stored.about, sections, ((layer, sections),))
    filled = bind(raw, schema, given, overrides="")
    return replace(stored, _sections=filled.sections)


def bind(
    raw: RawConfig, schema: Schema, given: Collection[str] = (), overrides: str | None = None
) -> Config:
    """Checks a file against the signatures that use it and fills in every default.

    Args:
        raw: what `read_config` returned.
        schema: section -> callable whose keyword parameters are the knobs; or section -> mapping of
            name -> callable, chosen by the section's own `name`; or section -> `Groups`.
        given: parameters that code supplies; a file cannot set them.
        overrides: as in the environment variable `nnssl_overrides`, which is read if this is None.

    Raises:
        ValueError: names every problem at once, each with file, section, knob, value and what is
            allowed.
    """
    problems: list[str] = []
    sections = deepcopy(dict(raw.sections))
    text = os.environ.get(OVERRIDES, "") if overrides is None else overrides
    applied = override(sections, schema, given, text, problems)

    def origin(path: str) -> str:
        return f"environment variable {OVERRIDES}" if path in applied else raw.origin(path)

    bound = _bind_sections(sections, schema, given, origin, problems)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError(f"{raw.name} has {count}:\n" + "\n".join(f"  {p}" for p in problems))
    return Config(raw.name, raw.kind, plain(raw.about), bound, raw.sources, plain(applied))


def _bind_sections(
    sections: Mapping[str, Any],
    schema: Schema,
    given: Collection[str],
    origin: Callable[[str], str],
    problems: list[str],
) -> dict[str, Any]:
    for name in [name for name in sections if name not in schema]:
        problems.append(
            f"{name}: unknown section in {origin(name)}{suggest(name, schema)}; "
            f"allowed: {', '.join(schema)}"
        )
    bound: dict[str, Any] = {name: {} for name in schema}
    for target in find_targets(sections, schema, origin, problems):
        values = _bind_target(target, given, origin, problems)
        section, _, group = target.path.partition(".")
        (bound[section] if group else bound).update({group or section: values})
    return bound


def _bind_target(
    target: KnobTarget, given: Collection[str], origin: Callable[[str], str], problems: list[str]
) -> dict[str, Any]:
    allowed = target.allowed(given)
    bound = {SELECTOR: target.values[SELECTOR]} if target.choices else {}
    for name in [name for name in target.values if name not in {**allowed, **bound}]:
        path = f"{target.path}.{name}"
        problems.append(
            f"{path} = {target.values[name]!r} in {origin(path)}: unknown knob"
            f"{suggest(str(name), allowed)}; allowed: {', '.join(allowed) or 'none'}"
        )
    for name, knob in allowed.items():
        path = f"{target.path}.{name}"
        try:
            bound[name] = _value(target.values, name, knob)
        except MismatchError as error:
            problems.append(f"{path}{_found(target.values, name)} in {origin(path)}: {error}")
    return bound


def _value(values: Mapping[str, Any], name: str, knob: Knob) -> Any:
    if name in values:
        return fit(values[name], knob.annotation)
    if knob.default is REQUIRED:
        raise MismatchError(f"is missing; must be {describe(knob.annotation)}")
    return knob.default


def _found(values: Mapping[str, Any], name: str) -> str:
    return f" = {values[name]!r}" if name in values else ""
