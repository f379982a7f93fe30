"""The one place where values are checked: a knob's annotation says what is allowed.

Bounds are written in the words of annotated-types, `temperature: Annotated[float, Gt(0)]`, and
checked by pydantic, in a YAML file (`nnssl.config`) as in a call from code (`checked`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Predicate

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]

REQUIRED = inspect.Parameter.empty
SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
UNIONS = (Union, types.UnionType)
SEQUENCES = (list, tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
T = TypeVar("T")


class MismatchError(ValueError):
    """A value does not fit an annotation; the message says what is allowed."""


@dataclasses.dataclass(frozen=True)
class Rule(Predicate):
    """A condition in an annotation, with the words that tell it to the user.

    `Annotated[tuple[float, float], Rule(lambda pair: pair[0] <= pair[1], "the smaller first")]`
    """

    words: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Lets the words be the message where content of files is checked."""
        from pydantic_core import core_schema

        def check(value: Any) -> Any:
            if not self.func(value):
                raise ValueError(self.words)
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


def _is_name(text: str) -> bool:
    return text.isprintable() and not set(text) & set("/\\") and text.strip(". ") != ""


ONE_LINE = "one line, without control characters"
Line = Annotated[str, Rule(str.isprintable, ONE_LINE)]  # what is printed, or written into a script
Name = Annotated[str, Rule(_is_name, "a name: one line without / and \\")]  # of a file, a folder


def one_of(options: Mapping[str, Any]) -> Rule:
    """The condition that a text is a name of a registry."""
    return Rule(options.__contains__, f"one of {', '.join(options)}")


@dataclasses.dataclass(frozen=True)
class Knob:
    """One keyword parameter: its annotation and its default (`REQUIRED` if it has none)."""

    annotation: Any
    default: Any


def fit(value: Any, annotation: Any) -> Any:
    """Returns `value` as plain data (numbers, texts, lists, dicts) of the annotated type.

    An integer is taken for a number, a truth value for neither; numbers are finite.

    Raises:
        MismatchError: the value does not fit; the message names what is allowed.
    """
    if annotation in (Any, REQUIRED, object):
        return plain(value)
    try:  # in JSON a list may stand for a tuple, as in YAML, and everything else is strict
        fitting = _adapter(annotation).validate_json(json.dumps(plain(value)))
        if isinstance(fitting, bool) is isinstance(value, bool):  # Literal[True] takes 1
            return plain(fitting)
    except (ValueError, TypeError):
        pass
    raise MismatchError(f"must be {describe(annotation)}")


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter  # 0.1 s, which `--help` does not need

    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def check_values(
    function: Callable[..., Any], values: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Checks values by name against the signature of what takes them, see `find_knobs`.

    Returns:
        Every knob's plain value, with defaults filled in; and name -> what is wrong with it.
    """
    allowed = find_knobs(function, given)
    bound: dict[str, Any] = {}
    wrong = {
        name: f"unknown knob{suggest(str(name), allowed)}; allowed: {', '.join(allowed) or 'none'}"
        for name in values
        if name not in allowed
    }
    for name, knob in allowed.items():
        try:
            if name in values:
                bound[name] = fit(values[name], knob.annotation)
            elif knob.default is REQUIRED:
                raise MismatchError(f"is missing; must be {describe(knob.annotation)}")
            else:
                bound[name] = knob.default
        except MismatchError as error:
            wrong[name] = str(error)
    return bound, wrong


def checked(cls: type[T]) -> type[T]:
    """Checks what a constructor is given, by file or by code, against its annotations.

    All fields of a dataclass are checked, of another class the keyword-only arguments. What no
    annotation can say (a rule between two fields) is left to `__post_init__`.

    Raises:
        ValueError: by the constructor; names every argument that does not fit.
    """
    build = cls.__init__  # type: ignore[misc]
    whole = dataclasses.is_dataclass(cls)

    @cache
    def allowed() -> dict[str, Any]:
        parameters = inspect.signature(cls).parameters.values()
        keywords = [p for p in parameters if whole or p.kind is inspect.Parameter.KEYWORD_ONLY]
        return {p.name: _annotation(cls, p) for p in keywords}

    @wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        problems = []
        for name, value in [*zip(allowed() if whole else (), args, strict=False), *kwargs.items()]:
            try:
                fit(value, allowed().get(name, Any))
            except MismatchError as error:
                problems.append(f"{name} = {value!r} {error}")
        if problems:
            raise ValueError("; ".join(problems))
        build(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def describe(annotation: Any, limits: str = "") -> str:
    """Says in words which values an annotation allows."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0], _limits(arguments[1:]) + limits)
    if origin in UNIONS:
        wider = [item for item in arguments if item is not int or float not in arguments]
        words = list(dict.fromkeys(describe(item, limits) for item in wider))
        return (", or " if "," in "".join(words) else " or ").join(words)
    if origin is Literal:
        return "one of " + ", ".join(repr(item) for item in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return "a list [" + ", ".join(describe(item) for item in arguments) + "]" + limits
    if origin in SEQUENCES:
        return f"a list{limits}" + (f", each {describe(arguments[0])}" if arguments else "")
    if origin in MAPPINGS:
        return f"a mapping{limits}" + (f", each {describe(arguments[1])}" if arguments else "")
    if annotation in (None, type(None)):
        return "null"
    return SCALARS.get(annotation, "any value") + limits


def _limits(metadata: Any) -> str:
    """Words for bounds: " of at least 1", " from 0 to 1", " (not empty)"."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        parts: Any = item if isinstance(item, GroupedMetadata) else [item]
        for each in parts:
            bounds |= {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
    least, most = bounds.pop("min_length", None), bounds.pop("max_length", None)
    others = [
        f"a multiple of {bounds.get('multiple_of')}" * ("multiple_of" in bounds),
        "not empty" * (least == 1) or f"at least {least}" * bool(least),
        f"at most {most}" * (most is not None),
        bounds.get("words", ""),
    ]
    if {"ge", "le"} <= bounds.keys():
        numbers = f" from {bounds['ge']} to {bounds['le']}"
    else:
        numbers = " and".join(
            f" {word} {bounds[key]}" for key, word in BOUNDS.items() if key in bounds
        )
        numbers = numbers.replace(" at", " of at", 1) if numbers.startswith(" at") else numbers
    remarks = ", ".join(filter(None, others))
    return numbers + f" ({remarks})" * bool(remarks)


def plain(value: Any) -> Any:
    """Returns a copy in which tuples are lists, so that JSON and YAML give it back unchanged."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def suggest(name: str, options: Collection[str]) -> str:
    """Returns a hint such as " (did you mean 'rotation'?)", or nothing."""
    known = {option.casefold(): option for option in options}
    matches = [known[m] for m in get_close_matches(name.casefold(), known, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


def find_knobs(function: Callable[..., Any], given: Collection[str] = ()) -> dict[str, Knob]:
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


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Resolves one annotation alone: those of other parameters may be for type checkers only."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    is_class = isinstance(function, type)
    body: Any = inspect.unwrap(function.__init__ if is_class else function)  # type: ignore[misc]
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    return typing.get_type_hints(holder, globalns=body.__globals__, include_extras=True)["it"]


def _default(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if dataclasses.is_dataclass(function):
        factory = function.__dataclass_fields__[parameter.name].default_factory
        if factory is not dataclasses.MISSING:
            return plain(factory())
    if parameter.default is REQUIRED:
        return REQUIRED
    return plain(deepcopy(parameter.default))
