"""Checks plain values against a signature: a knob is declared once, where it is used."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

REQUIRED = inspect.Parameter.empty
SCALARS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "null",
}
UNIONS = (Union, types.UnionType)
SEQUENCES = (list, tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)


class MismatchError(ValueError):
    """A value does not fit an annotation; the message says what is allowed."""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One keyword parameter: its annotation and its default (`REQUIRED` if it has none)."""

    annotation: Any
    default: Any


def knobs(function: Callable[..., Any], given: Collection[str] = ()) -> dict[str, Knob]:
    """Returns the keyword parameters of `function` that a file may set.

    Args:
        function: function or class; a class is asked for its constructor's parameters.
        given: names that code supplies, which are therefore no knobs.
    """
    parameters = inspect.signature(function).parameters.values()
    allowed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        p.name: Knob(_annotation(function, p), _default(function, p))
        for p in parameters
        if p.kind in allowed and p.name not in given
    }


def fit(value: Any, annotation: Any) -> Any:
    """Returns `value` as plain data (numbers, texts, lists, dicts) of the annotated type.

    An integer is taken for a number, a truth value for neither.

    Raises:
        MismatchError: the value does not fit; the message names what is allowed.
    """
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if annotation in (Any, REQUIRED, object):
        return plain(value)
    if origin is Annotated:
        return fit(value, arguments[0])
    if origin in UNIONS:
        return _fit_union(value, annotation)
    if origin is Literal:
        return _require(value, any(_same(value, item) for item in arguments), annotation)
    if origin in SEQUENCES:
        return _fit_sequence(value, annotation)
    if origin in MAPPINGS:
        return _fit_mapping(value, annotation)
    return _fit_scalar(value, annotation)


def describe(annotation: Any) -> str:
    """Says in words which values an annotation allows."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(describe(item) for item in arguments))
    if origin is Literal:
        return "one of " + ", ".join(repr(item) for item in arguments)
    if _is_fixed(annotation):
        return "a list [" + ", ".join(describe(item) for item in arguments) + "]"
    if origin in SEQUENCES:
        return f"a list, each {describe(arguments[0])}" if arguments else "a list"
    if origin in MAPPINGS:
        return f"a mapping, each {describe(arguments[1])}" if arguments else "a mapping"
    return SCALARS.get(type(None) if annotation is None else annotation, "any value")


def plain(value: Any) -> Any:
    """Returns a copy in which tuples are lists, so that JSON and YAML give it back unchanged."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def near(name: str, options: Collection[str]) -> str:
    """Returns a hint such as " (did you mean 'rotation'?)", or nothing."""
    matches = get_close_matches(name, list(options), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Resolves one annotation alone: those of other parameters may be for type checkers only."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    return typing.get_type_hints(holder, globalns=_globals(function), include_extras=True)["it"]


def _globals(function: Callable[..., Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(function):
        return vars(sys.modules[function.__module__])
    bases = inspect.getmro(function) if isinstance(function, type) else ()
    constructors = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    body = inspect.unwrap(constructors[0] if constructors else function)
    return getattr(body, "__globals__", vars(sys.modules[function.__module__]))


def _default(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if dataclasses.is_dataclass(function):
        factory = function.__dataclass_fields__[parameter.name].default_factory
        if factory is not dataclasses.MISSING:
            return plain(factory())
    if parameter.default is REQUIRED:
        return REQUIRED
    return plain(deepcopy(parameter.default))


def _require(value: Any, fits: bool, annotation: Any) -> Any:
    if not fits:
        raise MismatchError(f"must be {describe(annotation)}")
    return value


def _same(value: Any, item: Any) -> bool:
    return type(value) is type(item) and value == item


def _is_fixed(annotation: Any) -> bool:
    """Whether it is a tuple of given length, such as tuple[float, float]."""
    arguments = get_args(annotation)
    return get_origin(annotation) is tuple and bool(arguments) and arguments[-1] is not Ellipsis


def _fit_union(value: Any, annotation: Any) -> Any:
    members = get_args(annotation)
    for member in sorted(members, key=lambda member: type(value) is not member):
        try:
            return fit(value, member)
        except MismatchError:
            continue
    return _require(value, False, annotation)


def _fit_sequence(value: Any, annotation: Any) -> list[Any]:
    arguments = get_args(annotation) or (Any,)
    fixed = _is_fixed(annotation)
    fits = isinstance(value, list | tuple) and (not fixed or len(value) == len(arguments))
    _require(value, fits, annotation)
    items = arguments if fixed else [arguments[0]] * len(value)
    try:
        return [fit(entry, item) for entry, item in zip(value, items, strict=True)]
    except MismatchError:
        raise MismatchError(f"must be {describe(annotation)}") from None


def _fit_mapping(value: Any, annotation: Any) -> dict[str, Any]:
    item = (get_args(annotation) or (str, Any))[1]
    _require(value, isinstance(value, Mapping), annotation)
    try:
        return {str(key): fit(entry, item) for key, entry in value.items()}
    except MismatchError:
        raise MismatchError(f"must be {describe(annotation)}") from None


def _fit_scalar(value: Any, annotation: Any) -> Any:
    annotation = type(None) if annotation is None else annotation
    if annotation is float and type(value) is int:
        return float(value)
    if annotation not in SCALARS:
        raise TypeError(f"a knob cannot be annotated with {annotation!r}")
    return _require(value, type(value) is annotation, annotation)
