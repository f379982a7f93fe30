"""From a spec and a source folder to the list of cases; headers and small text files are read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnssl.convert.datalist import read_datalist
from nnssl.convert.dicom_tree import Found, find_series, read_tree
from nnssl.convert.rules import FRAME_RULES
from nnssl.convert.sources import (
    FRAME,
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

    A training case without a label gets a foreground mask. ``frame`` is its place on the fourth
    axis of its files, where cases are frames.
    """

    identifier: str
    patient: str
    part: str
    images: tuple[Files, ...]
    label: Files | None
    frame: int = 0


@dataclass(frozen=True)
class Conversion:
    """Which native download to convert, and how.

    ``n4`` corrects the bias field of all images; ``leave_out`` names cases and patients; ``key`` is
    the secret of the names that patients of DICOM trees get (None: their PatientIDs).
    """

    spec: DatasetSpec
    source: Path
    n4: bool = False
    workers: int = 1
    leave_out: Collection[str] = ()
    key: bytes | None = None

    def find_series(self) -> Found:
        """Possible cases of a DICOM tree."""
        spec = self.spec
        tree = read_tree(self.source, self.workers)
        return find_series(tree, self.source, spec.channels, spec.label, spec.test, self.key)


def plan_cases(conversion: Conversion) -> tuple[list[PlannedCase], list[Problem]]:
    """Find all cases of a dataset, but for cases and patients to leave out.

    Returns:
        The complete cases, sorted by part and identifier, and what is wrong with the others.

    Raises:
        ConversionError: The source is no folder or holds no training case at all, or what is to be
            left out does not exist.
    """
    spec, source = conversion.spec, conversion.source
    if not source.is_dir():
        raise ConversionError(f"{source} is not a folder.\n{spec.guidance}", [])
    inventory = Inventory.of(source)
    patterns = list(spec.channels.values())
    if spec.dicom:
        found = conversion.find_series()
        candidates, problems = found.candidates, found.problems
    elif spec.datalist:
        candidates, problems = read_datalist(spec, source)
    else:
        labels = [*(spec.masks or {}).values()] or ([spec.label] if spec.label else [])
        candidates, problems = find_candidates(inventory, patterns, labels, spec.test)
    problems += inventory.problems + _empty_folders(spec, inventory)
    names = [{each.format(spec.case), each.format(spec.patient)} for each in candidates]
    if unknown := sorted(set(conversion.leave_out).difference(*names)):
        raise ConversionError(f"there is no case or patient {unknown} to leave out", [])
    pairs = zip(candidates, names, strict=True)
    candidates = [each for each, own in pairs if own.isdisjoint(conversion.leave_out)]
    if spec.frames:
        chosen = dict.fromkeys(FRAME_RULES[spec.frames](candidates, inventory))
        problems += [each for each in chosen if isinstance(each, Problem)]
        candidates = [each for each in chosen if isinstance(each, Candidate)]
    cases = [case for each in candidates if (case := _find_case(spec, each, problems))]
    problems += _test_labels(cases) + _collisions(cases) + _merged_patients(spec, candidates)
    patients = {case.patient for case in cases if case.part == "Tr"}
    if not patients:
        heading = f"{source} holds no complete training case of {spec.name}.\n{spec.guidance}"
        raise ConversionError(heading, problems)
    return sorted(cases, key=lambda case: (case.part, case.identifier)), problems


def _find_case(
    spec: DatasetSpec, candidate: Candidate, problems: list[Problem]
) -> PlannedCase | None:
    """The case, or nothing and a problem for everything that is missing."""
    identifier, near = candidate.format(spec.case), candidate.files[0]
    missing = [
        Problem(identifier, f"image of channel {name} is missing (beside {near})")
        for name, image in zip(spec.channels, candidate.images, strict=True)
        if image is None
    ]
    if candidate.label and "" in candidate.label:
        names = [n for n, f in zip(spec.masks or (), candidate.label, strict=True) if not f]
        what = f"mask of {', '.join(names)} is missing (beside {near})"
        missing.append(Problem(identifier, f"{what}; write an empty one, or --leave-out the case"))
    if candidate.label is None and candidate.part == "Tr" and (spec.label or spec.masks):
        missing.append(Problem(identifier, f"label is missing (of {near})"))
    problems += missing
    images = tuple(image for image in candidate.images if image is not None)
    patient = candidate.format(spec.patient)
    frame = int(dict(candidate.groups).get(FRAME, 1)) - 1 if spec.fourth_axis == "frames" else 0
    case = PlannedCase(identifier, patient, candidate.part, images, candidate.label, frame)
    return None if missing else case


def _empty_folders(spec: DatasetSpec, inventory: Inventory) -> list[Problem]:
    """Patients' folders without images; one inside another's, as in HCP's packages, is its part."""
    if spec.folder is None:
        return []
    patterns = list(spec.channels.values())
    images = (path for path in inventory.files if any(match_end(p, path) for p in patterns))
    full = {str(folder) for path in images for folder in PurePosixPath(path).parents}
    named = {f for f in inventory.folders if re.fullmatch(spec.folder, PurePosixPath(f).name)}
    return [
        Problem(folder, "folder holds no image")
        for folder in sorted(named - full)
        if named.isdisjoint(map(str, PurePosixPath(folder).parents))
    ]


def _test_labels(cases: list[PlannedCase]) -> list[Problem]:
    test = [case for case in cases if case.part == "Ts"]
    bare = [case for case in test if case.label is None]
    what = "label is missing; other test cases have one"
    return [Problem(case.identifier, what) for case in bare if len(bare) < len(test)]


def _merged_patients(spec: DatasetSpec, candidates: list[Candidate]) -> list[Problem]:
    """Patients whose names differ in nothing that a name of a file keeps."""
    names: dict[str, set[str]] = defaultdict(set)
    for each in candidates:
        names[each.format(spec.patient)].add(each.fill(spec.patient))
    what = "would be the name of several patients, {}; rename them: letters, digits and _.+- stay"
    many = {name: sorted(found) for name, found in names.items() if len(found) > 1}
    return [Problem(name, what.format(found)) for name, found in many.items()]


def _collisions(cases: list[PlannedCase]) -> list[Problem]:
    by_identifier, parts = defaultdict(list), defaultdict(set)
    for case in cases:
        by_identifier[case.identifier].append(case.images[0][0])
        parts[case.patient].add(case.part)
    twice = {name: images for name, images in by_identifier.items() if len(images) > 1}
    problems = [Problem(name, f"is there twice: {images}") for name, images in twice.items()]
    both = sorted(patient for patient, where in parts.items() if len(where) > 1)
    return problems + [Problem(name, "is in the training and in the test set") for name in both]
