"""The JSON files that go with a converted dataset, and folders that are complete or set aside."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from nnssl.common.files import TEMPORARY, hash_json, read_json, write_json
from nnssl.common.versions import versions
from nnssl.convert.planning import Conversion, PlannedCase
from nnssl.convert.sources import Files
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.tasks import MASK, CheckedCase, VolumeTask, list_tasks
from nnssl.convert.volumes import FILE_ENDING
from nnssl.nnunet.cases import describe_case, make_cases_file
from nnssl.nnunet.paths import CASES_FILE, DATASET_FILE, SPLITS_FILE
from nnssl.nnunet.splits import draw_splits

CONVERSION_FILE = "conversion.json"
THICK = 3.0  # times the finest spacing, as in nnU-Net's planner
CHANGE_NO_CASE = {"description", "citation", "licence", "where", "layout", "unlabelled"}
# entries that older conversions, whose hashes stay, do not know
YOUNGER = dict.fromkeys(("masks", "datalist", "structures", "nan")) | {
    "dicom": False,
    "overlap": "refuse",
}


def describe_identical_images(checked: Sequence[CheckedCase]) -> list[str]:
    """A sentence for each group of cases with the same voxels in a channel, but not one patient."""
    groups: dict[tuple[int, str], list[PlannedCase]] = defaultdict(list)
    for each in checked:
        for image in enumerate(each.voxels):
            groups[image].append(each.case)
    sentences = []
    for cases in groups.values():
        patients = sorted({case.patient for case in cases})
        if len(patients) > 1:
            sentences.append(
                f"{' and '.join(case.identifier for case in cases)} have voxel-identical images, "
                f"though their patients are {' and '.join(patients)}; folds may part them, so that "
                "one is trained on and the other evaluated "
                f"(to leave out: --leave-out {' '.join(patients[1:])})"
            )
    return list(dict.fromkeys(sentences))


def find_doubts(checked: Sequence[CheckedCase]) -> list[str]:
    """Sentences on what a user should look at before training."""
    bare = [each.case.identifier for each in checked if each.has_bare_header]
    what = (
        f"{len(bare)} images have headers that say nothing (voxels of 1 mm, origin 0), so "
        f"their spacing is not known: {', '.join(bare)} (to leave out: --leave-out "
        f"{' '.join(bare)}; or give the files their real spacing)"
    )
    return [*describe_identical_images(checked), *([what] if bare else [])]


def suggest_configuration(checked: Sequence[CheckedCase]) -> tuple[str, str]:
    """The configuration that suits the images, and why: medians over cases, x y z.

    2D where the images are single slices, or slices as thick as three pixels: there nnU-Net itself
    treats axes differently, and most 3D kernels would see one slice.
    """
    sizes, mm = ([getattr(each, what) for each in checked] for what in ("size", "spacing"))
    if median(min(size) for size in sizes) == 1:
        return "2d", "most images are a single slice"
    finest, coarsest = (median(limit(each) for each in mm) for limit in (min, max))
    suits = "2d" if coarsest >= THICK * finest else "3d_fullres"
    return (
        suits,
        f"voxels of {finest:.3g} mm along the finest axis, {coarsest:.3g} mm along the thickest",
    )


def write_records(folder: Path, spec: DatasetSpec, checked: Sequence[CheckedCase]) -> None:
    """Write ``dataset.json``, ``splits_final.json`` and ``cases.json`` into the dataset folder."""
    patients = {
        each.case.identifier: each.case.patient for each in checked if each.case.part == "Tr"
    }
    dataset = {
        "channel_names": {str(index): name for index, name in enumerate(spec.channels)},
        "labels": spec.labels,
        **({"regions_class_order": spec.regions_class_order} if spec.regions_class_order else {}),
        "numTraining": len(patients),
        "file_ending": FILE_ENDING,
        "name": spec.name,
        "description": spec.description,
        "reference": spec.citation,
        "licence": spec.licence,
    }
    write_json(folder / DATASET_FILE, dataset)
    if len(set(patients.values())) > 1:  # else there is nothing to hold out: fold all
        write_json(folder / SPLITS_FILE, draw_splits(patients, spec.folds, spec.seed))
    write_json(folder / CASES_FILE.name, _cases_json(spec, checked))


def hash_job(conversion: Conversion, checked: Sequence[CheckedCase]) -> str:
    """Hash of spec, settings and sources; equal jobs give equal volumes and folds."""
    spec = conversion.spec
    settings = {key: value for key, value in asdict(spec).items() if key not in CHANGE_NO_CASE}
    settings = {key: value for key, value in settings.items() if value != YOUNGER.get(key, ...)}
    settings["remap"] = {str(key): value for key, value in (spec.remap or {}).items()}
    files = {name: value for each in checked for name, value in each.hashes.items()}
    return hash_json({"spec": settings, "n4": conversion.n4, "files": files})


def check_preprocessed(folder: Path, spec: DatasetSpec, checked: Sequence[CheckedCase]) -> None:
    """Refuse a preprocessed folder that belongs to another conversion (``ValueError``)."""
    record = folder / CASES_FILE
    if record.exists() and read_json(record) != _cases_json(spec, checked):
        raise ValueError(
            f"{record} belongs to a conversion of other files; delete {folder} or choose another "
            "dataset id (-d)"
        )


def _cases_json(spec: DatasetSpec, checked: Sequence[CheckedCase]) -> dict[str, Any]:
    cases = {}
    for each in checked:
        sha256 = each.hashes[list_tasks(each.case)[0].target]
        origin = each.case.patient, spec.name, spec.modality
        source = "DICOM" if spec.dicom else each.case.images[0][0]
        entry = describe_case(*origin, each.orientation, source, sha256)
        cases[each.case.identifier] = {**entry, "part": each.case.part}
    return make_cases_file(cases)


def make_conversion_record(
    conversion: Conversion, checked: Sequence[CheckedCase], job: str
) -> dict[str, Any]:
    """What was done: sources with hashes, decisions, versions, warnings, citation and licence."""
    spec, left_out = conversion.spec, sorted(conversion.leave_out)
    files = {
        task.target: _file_record(spec, each, task)
        for each in checked
        for task in list_tasks(each.case)
    }
    decisions = {"n4": conversion.n4, "left_out": left_out, "spec": asdict(spec)}
    warnings = find_doubts(checked)
    return describe_conversion(conversion, job, files, decisions=decisions, warnings=warnings)


def describe_conversion(
    conversion: Conversion, job: str, files: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Content of ``conversion.json``: what was made of which files, by which job."""
    spec, source = conversion.spec, conversion.source
    return {
        "job": job,
        "source": str(source.resolve()),
        "citation": spec.citation,
        "licence": spec.licence,
        **more,
        "versions": versions("SimpleITK", "nibabel", "numpy"),
        "files": files,
    }


def _file_record(spec: DatasetSpec, checked: CheckedCase, task: VolumeTask) -> dict[str, Any]:
    source = _name_source(spec, task.files)
    record: dict[str, Any] = {"source": source, "sha256": checked.hashes[task.target]}
    notes = list(checked.notes.get(task.target, ()))
    if task.role == MASK:
        notes.append(f"foreground mask by the rule {spec.foreground_rule}")
    return record | ({"notes": notes} if notes else {})


def _name_source(spec: DatasetSpec, files: Files) -> str | list[str]:
    """The files; of a DICOM tree their number only: names of patients and dates may be in paths."""
    if spec.dicom:
        return f"DICOM ({len(files)} files)"
    return files[0] if len(files) == 1 else list(files)


def read_job(folder: Path) -> str | None:
    """The job that filled a folder, if it says so."""
    record = folder / CONVERSION_FILE
    return str(read_json(record).get("job")) if record.exists() else None


def check_same(folder: Path, job: str, advice: str) -> None:
    """Refuse a complete folder of another job (``ValueError``); ``advice`` says what to do."""
    if read_job(folder) != job:
        raise ValueError(
            f"{folder} exists already and was made from other files or settings; {advice}"
        )


def open_partial(folder: Path, record: dict[str, Any]) -> None:
    """Go on with an unfinished folder of the same job; throw away that of another."""
    if folder.exists() and read_job(folder) != record["job"]:
        shutil.rmtree(folder)
    for part in folder.rglob(f"{TEMPORARY}*"):  # of a killed run: nobody else writes here
        part.unlink()
    write_json(folder / CONVERSION_FILE, record)
