"""From a spec and a source folder to the list of cases; nothing is opened but small text files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnssl.convert.rules import FRAME_RULES
from nnssl.convert.sources import (
    Candidate,
    ConversionError,
    Files,
    Inventory,
    Problem,
    find_candidates,
    match_end,
)
from nnssl.convert.spec import DatasetSpec


@dataclass(frozen=True)
class PlannedCase:
    """One nnU-Net case: identifier, patient, part (``Tr`` or ``Ts``) and its source files.

    ``mask``: a foreground mask is made in place of a label.
    """

    identifier: str
    patient: str
    part: str
    images: tuple[Files, ...]
    label: Files | None
    mask: bool = False


def plan_cases(
    spec: DatasetSpec, source: Path, leave_out: Collection[str] = ()
) -> tuple[list[PlannedCase], list[Problem]]:
    """Find all cases of a dataset, but for cases and patients to leave out.

    Returns:
        The complete cases, sorted by part and identifier, and what is wrong with the others.

    Raises:
        ConversionError: The source is no folder, or holds no training case at all.
    """
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder.\n{spec.guidance}", [])
    inventory = Inventory.of(source)
    candidates, problems = find_candidates(
        inventory, list(spec.channels.values()), spec.label, spec.test
    )
    problems += inventory.problems + _empty_folders(spec, inventory)
    candidates = _wanted(spec, candidates, leave_out)
    if spec.frames:
        candidates, more = FRAME_RULES[spec.frames](candidates, inventory)
        problems += more
    cases = [_case(spec, each) for each in candidates if not _incomplete(spec, each, problems)]
    problems += _test_labels(cases) + _collisions(cases)
    patients = {case.patient for case in cases if case.part == "Tr"}
    if not patients:
        heading = f"{source} holds no complete training case of {spec.name}.\n{spec.guidance}"
        raise ConversionError(heading, problems)
    if len(patients) == 1:
        what = "is the only complete training patient; folds need at least two"
        problems.append(Problem(next(iter(patients)), what))
    return sorted(cases, key=lambda case: (case.part, case.identifier)), problems


def _wanted(
    spec: DatasetSpec, candidates: list[Candidate], leave_out: Collection[str]
) -> list[Candidate]:
    """All but the cases and patients to leave out.

    Raises:
        ConversionError: One of them does not exist.
    """
    names = [{each.format(spec.case), each.format(spec.patient)} for each in candidates]
    if unknown := sorted(set(leave_out).difference(*names)):
        raise ConversionError(f"there is no case or patient {unknown} to leave out", [])
    return [each for each, own in zip(candidates, names, strict=True) if own.isdisjoint(leave_out)]


def _incomplete(spec: DatasetSpec, candidate: Candidate, problems: list[Problem]) -> bool:
    where = candidate.format(spec.case)
    near = candidate.files[0]
    missing = [
        Problem(where, f"image of channel {name} is missing (beside {near})")
        for name, image in zip(spec.channels, candidate.images, strict=True)
        if image is None
    ]
    if candidate.label is None and candidate.part == "Tr" and spec.label:
        missing.append(Problem(where, f"label is missing (of {near})"))
    problems += missing
    return bool(missing)


def _case(spec: DatasetSpec, candidate: Candidate) -> PlannedCase:
    images = tuple(image for image in candidate.images if image is not None)
    identifier, patient = candidate.format(spec.case), candidate.format(spec.patient)
    mask = spec.label is None and candidate.part == "Tr"
    return PlannedCase(identifier, patient, candidate.part, images, candidate.label, mask)


def _empty_folders(spec: DatasetSpec, inventory: Inventory) -> list[Problem]:
    patterns = list(spec.channels.values())
    return [
        Problem(folder, "folder holds no image")
        for folder in inventory.folders
        if spec.folder and re.fullmatch(spec.folder, PurePosixPath(folder).name)
        if not any(match_end(p, path) for path in inventory.below(folder) for p in patterns)
    ]


def _test_labels(cases: list[PlannedCase]) -> list[Problem]:
    test = [case for case in cases if case.part == "Ts"]
    bare = [case for case in test if case.label is None]
    if len(bare) in (0, len(test)):
        return []
    return [
        Problem(case.identifier, "label is missing; other test cases have one") for case in bare
    ]


def _collisions(cases: list[PlannedCase]) -> list[Problem]:
    by_identifier, parts = defaultdict(list), defaultdict(set)
    for case in cases:
        by_identifier[case.identifier].append(case.images[0][0])
        parts[case.patient].add(case.part)
    twice = {name: images for name, images in by_identifier.items() if len(images) > 1}
    problems = [Problem(name, f"is there twice: {images}") for name, images in twice.items()]
    both = sorted(patient for patient, where in parts.items() if len(where) > 1)
    return problems + [Problem(name, "is in the training and in the test set") for name in both]
