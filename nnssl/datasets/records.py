"""The JSON files that go with a converted dataset."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnssl.datasets.cases import CASES_FILE
from nnssl.datasets.checks import Checked
from nnssl.datasets.files import read_json, sha256_of, write_json
from nnssl.datasets.planning import Case
from nnssl.datasets.spec import DatasetSpec
from nnssl.datasets.splits import SPLITS_FILE, patient_splits, restore_split
from nnssl.datasets.volumes import FILE_ENDING

CONVERSION_FILE = "conversion.json"
TEXTS = {"description", "citation", "licence", "where", "layout"}  # change no dataset


def target_files(case: Case) -> list[tuple[str, str]]:
    """Pairs of source path and path below the nnU-Net dataset folder."""
    images = [
        (path, f"images{case.part}/{case.identifier}_{channel:04d}{FILE_ENDING}")
        for channel, path in enumerate(case.images)
    ]
    label = (
        [(case.label, f"labels{case.part}/{case.identifier}{FILE_ENDING}")] if case.label else []
    )
    return images + label


def write_records(folder: Path, spec: DatasetSpec, checked: Sequence[Checked]) -> None:
    """Write ``dataset.json``, ``splits_final.json`` and ``cases.json`` into the dataset folder."""
    patients = {
        each.case.identifier: each.case.patient for each in checked if each.case.part == "Tr"
    }
    write_json(folder / "dataset.json", _dataset_json(spec, len(patients)))
    write_json(folder / SPLITS_FILE, patient_splits(patients, spec.folds, spec.seed))
    write_json(folder / CASES_FILE.name, _cases_json(spec, checked))


def job_of(spec: DatasetSpec, checked: Sequence[Checked], n4: bool) -> str:
    """Hash of spec, settings and sources; equal jobs give equal volumes and folds."""
    settings = {key: value for key, value in asdict(spec).items() if key not in TEXTS}
    files = {name: each.hashes[path] for each in checked for path, name in target_files(each.case)}
    return sha256_of({"spec": settings, "n4": n4, "files": files})


def check_preprocessed(folder: Path, spec: DatasetSpec, checked: Sequence[Checked]) -> None:
    """Refuse a preprocessed folder that belongs to another conversion.

    Raises:
        ValueError: Its case records are others.
    """
    record = folder / CASES_FILE
    if record.exists() and read_json(record) != _cases_json(spec, checked):
        raise ValueError(
            f"{record} belongs to a conversion of other files; delete {folder} or choose another "
            "dataset id (-d)"
        )


def put_beside_preprocessed(raw: Path, preprocessed: Path) -> None:
    """Put folds and case records where nnU-Net and nnSSL read them, if nothing is there."""
    restore_split(raw, preprocessed)
    if not (preprocessed / CASES_FILE).exists():
        write_json(preprocessed / CASES_FILE, read_json(raw / CASES_FILE.name))


def _dataset_json(spec: DatasetSpec, training_cases: int) -> dict[str, Any]:
    return {
        "channel_names": {str(index): name for index, name in enumerate(spec.channels)},
        "labels": spec.labels,
        "numTraining": training_cases,
        "file_ending": FILE_ENDING,
        "name": spec.name,
        "description": spec.description,
        "reference": spec.citation,
        "licence": spec.licence,
    }


def _cases_json(spec: DatasetSpec, checked: Sequence[Checked]) -> dict[str, Any]:
    cases = {
        each.case.identifier: {
            "patient": each.case.patient,
            "dataset": spec.name,
            "modality": spec.modality,
            "orientation": each.orientation,
            "source": each.case.images[0],
            "sha256": each.hashes[each.case.images[0]],
            "part": each.case.part,
        }
        for each in checked
    }
    return {"cases": cases, "version": 1}


def conversion_json(
    spec: DatasetSpec, source: Path, checked: Sequence[Checked], n4: bool, job: str
) -> dict[str, Any]:
    """What was done: sources with hashes, decisions, versions, citation and licence.

    Args:
        spec: The dataset.
        source: Folder of the native download.
        checked: All cases.
        n4: Whether the bias field was corrected.
        job: See :func:`job_of`.
    """
    files = {
        name: {"source": path, "sha256": each.hashes[path]}
        for each in checked
        for path, name in target_files(each.case)
    }
    return {
        "job": job,
        "source": str(source.resolve()),
        "citation": spec.citation,
        "licence": spec.licence,
        "decisions": {"n4": n4, "spec": asdict(spec)},
        "versions": _versions(),
        "files": files,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("nnssl", "SimpleITK", "nibabel", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
