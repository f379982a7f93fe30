"""Binds a file to the signatures that use it: checked, complete, frozen.

A file says `kind: pretrain` or `kind: finetune`, may `extends:` another by its stem, describes
itself in `about:`, and has sections whose knobs are the keyword parameters of what uses them; there
is no second schema. `null` removes an inherited group; `{}` is a group with defaults only.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nnssl.common.checks import plain
from nnssl.config.aliases import rename_knobs
from nnssl.config.files import ABSENT, RawConfig, find_value
from nnssl.config.overrides import OVERRIDES, apply_overrides, place, write_overrides
from nnssl.config.schema import SELECTOR, Schema, find_targets


@dataclass(frozen=True)
class Config:
    """A checked configuration with every default filled in; nothing in it can be changed.

    Attributes:
        name: stem of the YAML file, which is the trainer's name.
        kind: "pretrain", "finetune" or "semi_supervised".
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
    """Fills in the defaults of knobs that did not exist when a configuration was stored.

    Raises:
        ValueError: it has a knob that does not exist any more, or a value that is not allowed now.
    """
    layer, sections = Path(f"stored configuration of {stored.name}"), stored.sections
    raw = RawConfig(stored.name, stored.kind, stored.about, sections, ((layer, sections),))
    return replace(stored, _sections=bind(raw, schema, given, overrides="").sections)


def bind(
    raw: RawConfig,
    schema: Schema,
    given: Collection[str] = (),
    overrides: str | None = None,
    stored: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """Checks a file against the signatures that use it and fills in every default.

    Args:
        raw: what `read_config` returned.
        schema: section -> callable whose keyword parameters are the knobs; or section -> mapping of
            name -> callable, chosen by the section's own `name`; or section -> `Groups`. A chosen
            callable that has a `Part` joins others of its section, see `find_targets`.
        given: parameters that code supplies; a file cannot set them.
        overrides: as in the environment variable `nnssl_overrides`, which is read if this is None.
        stored: overrides that a run was begun with; `overrides` come after them.

    Raises:
        ValueError: names every problem at once, each with file, section, knob, value and what is
            allowed.
    """
    sections = deepcopy(dict(raw.sections))
    text = os.environ.get(OVERRIDES, "") if overrides is None else overrides
    text = " ".join(filter(None, (write_overrides(stored), text)))
    applied, problems = apply_overrides(sections, schema, given, text)
    targets, wrong = find_targets(sections, schema)
    bound: dict[str, Any] = {name: {} for name in schema}
    for target in targets:
        values, wrong_here = target.bind(given)
        place(bound, target.path, values)
        wrong |= wrong_here
    for path, what in wrong.items():
        origin = f"environment variable {OVERRIDES}" if path in applied else raw.origin(path)
        value = find_value(sections, path)
        hidden = value is ABSENT or (path in sections and isinstance(value, Mapping))
        found = "" if hidden else f" = {value!r}"
        problems.append(f"{path}{found} in {origin}: {what}")
    if problems:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        raise ValueError(f"{raw.name} has {count}:\n" + "\n".join(f"  {p}" for p in problems))
    return Config(raw.name, raw.kind, plain(raw.about), bound, raw.sources, plain(applied))
