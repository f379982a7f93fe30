"""One engine for all dataset specs: plan, check everything, then write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnssl.common.files import remove_old_parts
from nnssl.common.parallel import for_each
from nnssl.convert.planning import Conversion, plan_cases
from nnssl.convert.records import (
    check_preprocessed,
    check_same,
    hash_job,
    make_conversion_record,
    open_partial,
    write_records,
)
from nnssl.convert.sources import refuse
from nnssl.convert.tasks import CheckedCase, check_case, list_tasks, write_volume
from nnssl.convert.volumes import read_whole
from nnssl.nnunet.paths import CASES_FILE, SPLITS_FILE, dataset_prefix, find_dataset_names
from nnssl.nnunet.splits import restore_records

ADVICE = "delete it (and its preprocessed folder) or choose another dataset id (-d)"


@dataclass(frozen=True)
class ConversionTarget:
    """Where the dataset goes; ``partial`` holds it until it is complete."""

    raw: Path
    preprocessed: Path
    partial: Path

    @classmethod
    def of(cls, raw: Path, preprocessed: Path, dataset_id: int, name: str) -> ConversionTarget:
        """Folders of ``Dataset<id>_<name>``.

        Raises:
            ValueError: The number is out of range or another dataset has it.
        """
        if not 1 <= dataset_id <= 999:
            raise ValueError(f"dataset id is {dataset_id}; allowed: 1 to 999")
        folder = raw / f"{dataset_prefix(dataset_id)}{name}"
        others = set(find_dataset_names(dataset_id, raw, preprocessed))
        if taken := sorted(others - {folder.name}):
            raise ValueError(f"dataset id {dataset_id} is taken by {taken}; choose another (-d)")
        return cls(folder, preprocessed / folder.name, raw / f".{folder.name}.partial")


def check_source(conversion: Conversion) -> list[CheckedCase]:
    """Plan a conversion and open every file.

    Raises:
        ConversionError: Something is wrong; every bad case is named.
    """
    cases, problems = plan_cases(conversion)
    work = partial(check_case, conversion=conversion)
    checked = for_each(work, cases, conversion.workers, "check")
    problems += [problem for each in checked for problem in each.problems]
    refuse(problems, f"in {conversion.source}")
    return checked


def convert(conversion: Conversion, target: ConversionTarget) -> list[CheckedCase]:
    """Convert a native download into an nnU-Net dataset with patient-wise folds.

    A complete conversion of the same sources is left as it is (folds and case records are put
    back where they are missing); an interrupted one goes on where it stopped.

    Raises:
        ConversionError: Something is wrong with the sources.
        ValueError: The target holds something else.
    """
    checked, spec = check_source(conversion), conversion.spec
    job = hash_job(conversion, checked)
    if target.raw.exists():
        check_same(target.raw, job, ADVICE)
    else:
        check_preprocessed(target.preprocessed, spec, checked)
        open_partial(target.partial, make_conversion_record(conversion, checked, job))
        _write_volumes(conversion, target.partial, checked)
        write_records(target.partial, spec, checked)
        os.replace(target.partial, target.raw)
    for file in (target.preprocessed / SPLITS_FILE, target.preprocessed / CASES_FILE):
        if not file.exists():  # then nothing but a killed conversion has begun to write it
            remove_old_parts(file, 0.0)
    restore_records(target.raw, target.preprocessed)
    return checked


def _write_volumes(conversion: Conversion, folder: Path, checked: Sequence[CheckedCase]) -> None:
    missing = [
        task
        for each in checked
        for task in list_tasks(each.case)
        if read_whole(folder / task.target) is None
    ]
    for parent in {(folder / task.target).parent for task in missing}:
        parent.mkdir(exist_ok=True)
    work = partial(write_volume, conversion=conversion, folder=folder)
    for_each(work, missing, conversion.workers, "write")
