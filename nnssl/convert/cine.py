"""Time frames without labels, written beside an nnU-Net dataset, where stock commands never look.

``nnUNet_raw/DatasetXXX_NAME/nnssl_unlabelled/cine/`` holds one file per frame.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.common.files import atomic_path, hash_json, write_json
from nnssl.common.parallel import for_each
from nnssl.convert.planning import Conversion, plan_cases
from nnssl.convert.readers.read import read_frames, take_frame
from nnssl.convert.records import check_same, describe_conversion, open_partial
from nnssl.convert.sources import (
    FRAME,
    Candidate,
    ConversionError,
    Inventory,
    Problem,
    find_candidates,
    refuse,
)
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.volumes import (
    FILE_ENDING,
    Reading,
    be_quiet,
    find_orientation,
    read_whole,
    write_image,
)
from nnssl.nnunet.cases import describe_case, make_cases_file
from nnssl.nnunet.paths import CASES_FILE

FOLDER = Path("nnssl_unlabelled") / "cine"
ENDING = f"_0000{FILE_ENDING}"


@dataclass(frozen=True)
class Cine:
    """A file of frames: ``frames`` maps identifiers to indices of the fourth axis.

    ``size`` is in the order x y z; ``problem`` says why the file cannot be used.
    """

    patient: str
    file: str
    frames: dict[str, int]
    size: tuple[int, ...] = ()
    orientation: str = ""
    sha256: str = ""
    problem: str = ""


def check_cines(conversion: Conversion) -> list[Cine]:
    """Find and open all files of frames; frames that are cases of the dataset are left out.

    Raises:
        ValueError: The dataset has no files of frames.
        ConversionError: There are none in this source, or some are broken; each one is named.
    """
    spec, source = conversion.spec, conversion.source
    if spec.unlabelled is None:
        raise ValueError(
            f"the dataset spec of {spec.name} has no 'unlabelled:' entry, so there are no frames "
            "to be taken from it; leave out --cine"
        )
    patterns = [spec.unlabelled]
    candidates, problems = find_candidates(Inventory.of(source), patterns, [], spec.test)
    wanted = [each for each in candidates if each.format(spec.patient) not in conversion.leave_out]
    cases = plan_cases(conversion)[0]
    taken = {case.identifier for case in cases}.union(conversion.leave_out)
    work = partial(_check, conversion=conversion, taken=taken)
    cines = for_each(work, wanted, conversion.workers, "check cine")
    problems += [Problem(each.file, each.problem) for each in cines if each.problem]
    problems += _collisions(cines)
    refuse(problems, f"with the time frames in {source}")
    if not cines:
        what = f"there are no files of time frames ({spec.unlabelled}) in {source}"
        raise ConversionError(f"{what}; leave out --cine, or get them.\n{spec.guidance}", [])
    return cines


def write_cines(conversion: Conversion, raw: Path, cines: Sequence[Cine]) -> Path:
    """Write one file per frame into a folder of ``raw`` (``nnUNet_raw/DatasetXXX_NAME``).

    Complete files stay, an interrupted run goes on. Returns the folder of the frames.

    Raises:
        ValueError: The folder holds frames of other files.
    """
    folder = raw / FOLDER
    record = _record(conversion, cines)
    if folder.exists():
        check_same(folder, record["job"], "delete it")
        return folder
    unfinished = folder.with_name(f".{folder.name}.partial")
    open_partial(unfinished, record)
    work = partial(_write, source=conversion.source, folder=unfinished)
    for_each(work, cines, conversion.workers, "write cine")
    cases: dict[str, Any] = {}
    spec = conversion.spec
    for each in cines:
        origin = each.patient, spec.name, spec.modality
        entry = describe_case(*origin, each.orientation, each.file, each.sha256)
        cases |= dict.fromkeys(each.frames, entry)
    write_json(unfinished / CASES_FILE.name, make_cases_file(cases))
    os.replace(unfinished, folder)
    return folder


def make_patient_pattern(spec: DatasetSpec) -> str:
    """Regular expression whose group is the patient in the name of a frame's file.

    Where the identifier does not hold the patient, the whole identifier is the group.
    """
    holds = spec.patient in spec.case
    before, _, after = spec.case.partition(spec.patient) if holds else ("", "", "")
    ends = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(text)) for text in (before, after)]
    return "([^/]+)".join(ends) if holds else f"([^/]+){re.escape(ENDING)}"


def _check(candidate: Candidate, conversion: Conversion, taken: Collection[str]) -> Cine:
    be_quiet()
    spec = conversion.spec
    patient, file = candidate.format(spec.patient), candidate.files[0]
    try:
        volume = read_frames(conversion.source / file, Reading(headers=spec.headers))
    except ValueError as error:
        return Cine(patient, file, {}, problem=str(error))
    frames = {}
    for index in range(volume.image.GetSize()[3]):
        groups = (*candidate.groups, (FRAME, f"{index + 1:02d}"))
        frames[replace(candidate, groups=groups).format(spec.case)] = index
    frames = {name: index for name, index in frames.items() if name not in taken}
    first = take_frame(volume.image, 0)
    axes = find_orientation(first)
    return Cine(patient, file, frames, first.GetSize(), axes, volume.sha256)


def _collisions(cines: Sequence[Cine]) -> list[Problem]:
    owners: dict[str, str] = {}
    clashes = {
        each.file: owners[name]
        for each in cines
        for name in each.frames
        if owners.setdefault(name, each.file) != each.file
    }
    return [Problem(file, f"is there twice, the other is {one}") for file, one in clashes.items()]


def _write(cine: Cine, source: Path, folder: Path) -> None:
    """Write the frames of a file that are missing, each whole or not at all."""
    be_quiet()
    targets = {folder / f"{name}{ENDING}": index for name, index in cine.frames.items()}
    missing = {path: index for path, index in targets.items() if read_whole(path) is None}
    if not missing:
        return
    image = read_frames(source / cine.file).image
    for path, index in missing.items():
        with atomic_path(path, sole_writer=True) as part:
            write_image(take_frame(image, index), part)


def _record(conversion: Conversion, cines: Sequence[Cine]) -> dict[str, Any]:
    spec = conversion.spec
    files = {
        f"{name}{ENDING}": {"source": each.file, "frame": index, "sha256": each.sha256}
        for each in cines
        for name, index in each.frames.items()
    }
    settings = {"pattern": spec.unlabelled, "case": spec.case, "patient": spec.patient}
    job = hash_json({"settings": settings, "files": files})
    return describe_conversion(conversion, job, files)
