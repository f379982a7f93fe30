"""From a spec and a source folder to the list of cases; nothing is opened but small text files."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnssl.datasets.inventory import (
    Candidate,
    ConversionError,
    Inventory,
    Problem,
    find_candidates,
)
from nnssl.datasets.rules import FRAME_RULES
from nnssl.datasets.spec import DatasetSpec


@dataclass(frozen=True)
class Case:
    """One nnU-Net case: identifier, patient, part (``Tr`` or ``Ts``) and its source files."""

    identifier: str
    patient: str
    part: str
    images: tuple[str, ...]
    label: str | None


def plan(spec: DatasetSpec, source: Path) -> tuple[list[Case], list[Problem]]:
    """Find all cases of a dataset.

    Returns:
        The complete cases, sorted by part and identifier, and what is wrong with the others.

    Raises:
        ConversionError: The source is no folder, or holds no training case at all.
    """
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder.\n{guidance(spec)}", [])
    inventory = Inventory.of(source)
    candidates, problems = find_candidates(
        inventory, list(spec.channels.values()), spec.label, spec.test
    )
    problems += inventory.problems + _empty_folders(spec, inventory)
    if spec.frames:
        candidates, more = FRAME_RULES[spec.frames](candidates, inventory)
        problems += more
    cases = [_case(spec, each) for each in candidates if not _incomplete(spec, each, problems)]
    problems += _test_labels(cases) + _collisions(cases)
    if not any(case.part == "Tr" for case in cases):
        heading = f"{source} holds no complete training case of {spec.name}.\n{guidance(spec)}"
        raise ConversionError(heading, problems)
    return sorted(cases, key=lambda case: (case.part, case.identifier)), problems


def guidance(spec: DatasetSpec) -> str:
    """Where to get the data and what its folder must look like."""
    return f"Get {spec.name} from {spec.where}\nThe folder must look like this:\n{spec.layout}"


def _incomplete(spec: DatasetSpec, candidate: Candidate, problems: list[Problem]) -> bool:
    where = candidate.format(spec.case)
    near = candidate.files[0]
    missing = [
        Problem(where, f"image of channel {name} is missing (beside {near})")
        for name, image in zip(spec.channels, candidate.images, strict=True)
        if image is None
    ]
    if candidate.label is None and candidate.part == "Tr":
        missing.append(Problem(where, f"label is missing (of {near})"))
    problems += missing
    return bool(missing)


def _case(spec: DatasetSpec, candidate: Candidate) -> Case:
    images = tuple(image for image in candidate.images if image is not None)
    identifier, patient = candidate.format(spec.case), candidate.format(spec.patient)
    return Case(identifier, patient, candidate.part, images, candidate.label)


def _empty_folders(spec: DatasetSpec, inventory: Inventory) -> list[Problem]:
    patterns = [re.compile(rf"(?:^|/){pattern}$") for pattern in spec.channels.values()]
    return [
        Problem(folder, "folder holds no image")
        for folder in inventory.folders
        if spec.folder and re.fullmatch(spec.folder, PurePosixPath(folder).name)
        if not any(p.search(path) for path in inventory.below(folder) for p in patterns)
    ]


def _test_labels(cases: list[Case]) -> list[Problem]:
    test = [case for case in cases if case.part == "Ts"]
    bare = [case for case in test if case.label is None]
    if len(bare) in (0, len(test)):
        return []
    return [
        Problem(case.identifier, "label is missing; other test cases have one") for case in bare
    ]


def _collisions(cases: list[Case]) -> list[Problem]:
    by_identifier, parts = defaultdict(list), defaultdict(set)
    for case in cases:
        by_identifier[case.identifier].append(case.images[0])
        parts[case.patient].add(case.part)
    twice = {name: images for name, images in by_identifier.items() if len(images) > 1}
    problems = [Problem(name, f"is there twice: {images}") for name, images in twice.items()]
    both = sorted(patient for patient, where in parts.items() if len(where) > 1)
    return problems + [Problem(name, "is in the training and in the test set") for name in both]
