"""Finds and reads the YAML files of trainers; `nnssl.config` is the door to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nnssl.common.checks import suggest
from nnssl.common.content import check_size
from nnssl.config.aliases import rename_knobs

ABSENT = object()
CONFIG_FOLDERS = "nnssl_configs"
TRAINER_PREFIX = "nnSSL"
KINDS = ("pretrain", "finetune", "semi_supervised")
ABOUT = ("family", "summary", "paper", "dimensions", "trains", "bibtex")
INSTALLED = Path(__file__).resolve().parents[2] / "nnssl_configs"
TRAINER_FILE = re.compile(
    r"""^(kind:\s*['"]?(pretrain|finetune|semi_supervised)\b|extends:\s*['"]?nnSSL)""", re.M
)


@dataclass(frozen=True)
class RawConfig:
    """A file with all that it extends, merged but not checked against signatures.

    Attributes:
        layers: (file, its own content), the named file first.
    """

    name: str
    kind: str
    about: Mapping[str, Any]
    sections: Mapping[str, Any]
    layers: tuple[tuple[Path, Mapping[str, Any]], ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(str(path) for path, _ in self.layers)

    def origin(self, path: str) -> str:
        """Returns the file that decides a dotted path (the named file if none mentions it)."""
        for file, content in self.layers:
            if find_value(content, path) is not ABSENT:
                return str(file)
        return str(self.layers[0][0])


def find_value(content: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or `ABSENT`."""
    value: Any = content
    for part in path.split("."):
        value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which 1e-3 is a number and a key that stands twice is an error.

    The compiled one is ten times faster.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        """Aliases are written out only if that fits into memory."""
        try:
            check_size(node, "it", _open_node)
        except ValueError as error:
            raise yaml.YAMLError(str(error)) from None
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            wrong = "" if isinstance(key, str | int | float) else "is no text or number"
            if wrong or key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} {wrong or 'stands twice'}",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _open_node(value: Any) -> Any:
    """A node of YAML holds nodes, or pairs of them."""
    inside = value.value if isinstance(value, yaml.Node) else value
    return inside if isinstance(inside, list | tuple) else None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML.

    Raises:
        ValueError: names `where`, the line and the cause.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{where}, line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a file of named entries.

    Raises:
        ValueError: it cannot be read, is not valid YAML, or is no mapping of names.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: must be a mapping of sections, found {content!r:.80}")
    return content


def check_about(file: Path, about: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError where the section `about` is no mapping of allowed names."""
    if not isinstance(about, Mapping):
        raise ValueError(f"{file}: about = {about!r}; must be a mapping")
    for key in about:
        if key not in allowed:
            hint = suggest(str(key), allowed)
            raise ValueError(f"{file}: about.{key}: unknown{hint}; allowed: {', '.join(allowed)}")


def find_configs() -> dict[str, Path]:
    """Returns stem -> file of every trainer; user folders come before the installed one.

    The environment variable `nnssl_configs` names user folders, joined by the path separator. A
    file that no trainer can be made of is listed too: `read_config` says what is wrong with it.

    Raises:
        ValueError: a user folder does not exist.
    """
    return {stem: files[0] for stem, files in _find_files().items()}


def _find_files() -> dict[str, list[Path]]:
    """Stem -> file; more than one where a stem stands twice in one folder tree."""
    found: dict[str, list[Path]] = {}
    for folder in (*user_folders(), INSTALLED):
        if not folder.is_dir():
            raise ValueError(
                f"environment variable {CONFIG_FOLDERS} names {str(folder)!r}, which is not a "
                f"folder; name existing folders, joined by {os.pathsep!r}"
            )
        found = _trainers_in(folder) | found
    return dict(sorted(found.items()))


def read_config(name: str) -> RawConfig:
    """Reads a trainer's file and merges what it extends.

    Raises:
        ValueError: no such file (lists near names), a stem that is no trainer's name or stands
            twice in one folder tree, a cycle or missing parent in `extends`, invalid YAML, a wrong
            `kind` or `about`.
    """
    layers = tuple(_chain(name, _find_files()))
    merged: dict[str, Any] = {}
    for _, content in reversed(layers):
        merged = _merge(merged, content)
    merged.pop("extends", None)
    file = layers[0][0]
    kind, about = merged.pop("kind", None), merged.pop("about", None) or {}
    _check_header(file, kind, about, layers)
    return RawConfig(name, kind, about, merged, layers)


def user_folders() -> list[Path]:
    """The folders that the environment variable `nnssl_configs` names, there or not."""
    texts = os.environ.get(CONFIG_FOLDERS, "").split(os.pathsep)
    return [Path(text).expanduser() for text in texts if text.strip()]


def _trainers_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in filter(_is_trainer, sorted((*folder.rglob("*.yaml"), *folder.rglob("*.yml")))):
        found.setdefault(path.stem, []).append(path)
    return found


def _is_trainer(path: Path) -> bool:
    """Data sets and studies are YAML too; files of other people may lie in a user's folder."""
    if path.stem.startswith(TRAINER_PREFIX):
        return True
    try:
        return bool(TRAINER_FILE.search(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False


def _check_name(files: Sequence[Path]) -> None:
    """Raises ValueError unless the file's stem can be a trainer's name, and no other has it.

    nnU-Net splits the names of result folders at `__`.
    """
    path, stem = files[0], files[0].stem
    if not stem.startswith(TRAINER_PREFIX) or "__" in stem:
        raise ValueError(
            f"{path}: the name of a trainer must start with {TRAINER_PREFIX!r} and contain no "
            f"'__', found {stem!r}; rename the file"
        )
    if len(files) > 1:
        raise ValueError(f"two files are called {stem!r}: {path} and {files[1]}; rename one")


def _chain(name: str, files: Mapping[str, Sequence[Path]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    chain: list[str] = []
    current: Any = name
    while current is not None:
        if current in chain:
            cycle = " -> ".join([*chain, current])
            raise ValueError(f"{files[chain[-1]][0]}: extends goes in a circle: {cycle}")
        if current not in files:
            raise ValueError(_unknown(current, chain, files))
        _check_name(files[current])
        file = files[current][0]
        content = read_yaml(file)
        yield file, rename_knobs(content, str(file))
        chain.append(current)
        current = content.get("extends")


def _unknown(name: Any, chain: list[str], files: Mapping[str, Sequence[Path]]) -> str:
    where = f"{files[chain[-1]][0]}: extends names" if chain else "there is no trainer"
    folders = ", ".join(str(folder) for folder in (*user_folders(), INSTALLED))
    near = suggest(str(name), files) or f"; known: {', '.join(files) or 'none'}"
    return f"{where} {name!r}{near} (searched in {folders}; nnssl_trainers prints them)"


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = deepcopy(dict(parent))
    for key, value in child.items():
        inherited = merged.get(key)
        if value is None and isinstance(inherited, Mapping):
            del merged[key]
        elif isinstance(value, Mapping) and isinstance(inherited, Mapping):
            # a child that chooses another objective has other knobs
            former = inherited.get("name")
            rechosen = former is not None and value.get("name", former) != former
            merged[key] = deepcopy(dict(value)) if rechosen else _merge(inherited, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def _check_header(
    file: Path, kind: Any, about: Any, layers: tuple[tuple[Path, Mapping[str, Any]], ...]
) -> None:
    if kind not in KINDS:
        raise ValueError(f"{file}: kind = {kind!r}; allowed: {', '.join(KINDS)}")
    for path, content in layers:
        if content.get("kind", kind) != kind:
            raise ValueError(f"{file}: kind = {kind!r} extends {path} of another kind")
    check_about(file, about, ABOUT)
