"""A dataset as data: the closed vocabulary of ``nnssl_configs/datasets/*.yaml``."""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nnssl.datasets.rules import FRAME_RULES

INSTALLED = Path(__file__).resolve().parents[2] / "nnssl_configs"


@dataclass(frozen=True)
class DatasetSpec:
    """What the engine must know about one public dataset.

    Patterns are regular expressions; a file belongs to one when the end of its path below the
    source folder matches, starting at a path component. Named groups identify the image.

    Args:
        name: Name of the dataset; the nnU-Net folder is ``Dataset<id>_<name>``.
        description: One line for ``--list``.
        modality: Modality written into ``cases.json``.
        channels: Channel name (nnU-Net derives the normalisation from it) -> pattern of its files.
        label: Pattern of the label files; it has the named groups of the channel patterns.
        labels: Label name -> value; ``background`` is 0, values are consecutive.
        case: Template of the case identifier, made of named groups.
        patient: Template of the patient: cases of one patient are never parted by a fold.
        citation: What users must cite.
        licence: Licence of the data.
        where: Where to get the data.
        layout: What the source folder must look like.
        test: Regular expression; where it is found in a path, the file belongs to the test set.
        folder: Pattern of a patient's folder; one without images is an error.
        frames: Name of a registered rule that chooses among the images found.
        folds: Number of folds.
        seed: Seed of the folds.
    """

    name: str
    description: str
    modality: str
    channels: dict[str, str]
    label: str
    labels: dict[str, int]
    case: str
    patient: str
    citation: str
    licence: str
    where: str
    layout: str
    test: str | None = None
    folder: str | None = None
    frames: str | None = None
    folds: int = 5
    seed: int = 1234


def find_specs(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Names and files of all dataset specs.

    Args:
        folders: The user's configuration folders (the first wins); installed specs come last.
    """
    found: dict[str, Path] = {}
    for folder in [*folders, INSTALLED]:
        for path in sorted((folder / "datasets").glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_spec(path: Path) -> DatasetSpec:
    """Read and check one spec.

    Raises:
        ValueError: Unknown, missing or impossible entries; the message names file and entry.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = _bind(raw if isinstance(raw, dict) else {})
        _check_labels(spec)
        _check_patterns(spec)
        _check_choices(spec)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    return spec


def _bind(raw: dict[str, Any]) -> DatasetSpec:
    parameters = inspect.signature(DatasetSpec).parameters
    unknown = sorted(set(raw) - set(parameters))
    if unknown:
        raise ValueError(f"unknown entries {unknown}; allowed: {', '.join(parameters)}")
    needed = {name for name, each in parameters.items() if each.default is each.empty}
    if needed - set(raw):
        raise ValueError(f"missing entries: {sorted(needed - set(raw))}")
    for name in ("channels", "labels"):
        if not isinstance(raw[name], dict) or not raw[name]:
            raise ValueError(f"{name} is {raw[name]!r}; it must map names to values")
    return DatasetSpec(**raw)


def _check_labels(spec: DatasetSpec) -> None:
    values = list(spec.labels.values())
    if spec.labels.get("background") != 0 or sorted(values) != list(range(len(values))):
        raise ValueError(f"labels is {spec.labels}; need background 0 and consecutive integers")


def _check_patterns(spec: DatasetSpec) -> None:
    patterns = {**{f"channels.{k}": v for k, v in spec.channels.items()}, "label": spec.label}
    groups = {entry: named_groups(entry, pattern) for entry, pattern in patterns.items()}
    if len(set(map(frozenset, groups.values()))) > 1:
        raise ValueError(f"patterns must have the same named groups; found {groups}")
    for entry in ("test", "folder"):
        named_groups(entry, getattr(spec, entry) or "")
    allowed = groups["label"]
    for entry in ("case", "patient"):
        used = {field for _, field, _, _ in string.Formatter().parse(getattr(spec, entry)) if field}
        if not used or used - allowed:
            raise ValueError(
                f"{entry} is {getattr(spec, entry)!r}; it must use the named groups {allowed}"
            )


def named_groups(entry: str, pattern: str) -> set[str]:
    """Named groups of a pattern; a ``ValueError`` names the entry when it does not compile."""
    try:
        return set(re.compile(pattern).groupindex)
    except re.error as error:
        raise ValueError(f"{entry} is {pattern!r}, no regular expression: {error}") from error


def _check_choices(spec: DatasetSpec) -> None:
    if spec.frames is not None and spec.frames not in FRAME_RULES:
        raise ValueError(f"frames is {spec.frames!r}; allowed: {', '.join(FRAME_RULES)}")
    if not isinstance(spec.folds, int) or spec.folds < 2:
        raise ValueError(f"folds is {spec.folds!r}; it must be an integer of at least 2")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", spec.name):
        raise ValueError(f"name is {spec.name!r}; allowed: letters, digits, '-' and '_'")
