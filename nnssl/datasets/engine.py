"""One engine for all dataset specs: plan, check everything, then write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.datasets.checks import Checked, check_case
from nnssl.datasets.files import read_json, write_json
from nnssl.datasets.inventory import ConversionError
from nnssl.datasets.parallel import for_each
from nnssl.datasets.planning import plan
from nnssl.datasets.records import (
    CONVERSION_FILE,
    check_preprocessed,
    conversion_json,
    job_of,
    put_beside_preprocessed,
    target_files,
    write_records,
)
from nnssl.datasets.spec import DatasetSpec
from nnssl.datasets.volumes import be_quiet, transfer


@dataclass(frozen=True)
class Target:
    """Where the dataset goes; ``partial`` holds it until it is complete."""

    raw: Path
    preprocessed: Path
    partial: Path

    @classmethod
    def of(cls, raw: Path, preprocessed: Path, dataset_id: int, name: str) -> Target:
        """Folders of ``Dataset<id>_<name>``.

        Raises:
            ValueError: The number is out of range or another dataset has it.
        """
        if not 1 <= dataset_id <= 999:
            raise ValueError(f"dataset id is {dataset_id}; allowed: 1 to 999")
        prefix = f"Dataset{dataset_id:03d}_"
        others = {f.name for root in (raw, preprocessed) for f in root.glob(f"{prefix}*")}
        if taken := sorted(others - {prefix + name}):
            raise ValueError(f"dataset id {dataset_id} is taken by {taken}; choose another (-d)")
        folder = raw / f"{prefix}{name}"
        return cls(folder, preprocessed / folder.name, raw / f".{folder.name}.partial")


def check(spec: DatasetSpec, source: Path, workers: int) -> list[Checked]:
    """Plan a conversion and open every file.

    Raises:
        ConversionError: Something is wrong; every bad case is named.
    """
    cases, problems = plan(spec, source)
    work = partial(check_case, source=source, labels=spec.labels)
    checked = for_each(work, cases, workers, "check")
    problems = problems + [problem for each in checked for problem in each.problems]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        heading = f"{count} in {source}; nothing was written:"
        raise ConversionError(heading, problems)
    return checked


def convert(
    spec: DatasetSpec, source: Path, target: Target, n4: bool = False, workers: int = 1
) -> list[Checked]:
    """Convert a native download into an nnU-Net dataset with patient-wise folds.

    A complete conversion of the same sources is left as it is (folds and case records are put
    back where they are missing); an interrupted one goes on where it stopped.

    Args:
        spec: The dataset.
        source: Folder of the native download.
        target: Where the dataset goes.
        n4: Correct the bias field of all images.
        workers: Number of processes.

    Raises:
        ConversionError: Something is wrong with the sources.
        ValueError: The target holds something else.
    """
    checked = check(spec, source, workers)
    job = job_of(spec, checked, n4)
    if target.raw.exists():
        _check_same(target.raw, job)
    else:
        check_preprocessed(target.preprocessed, spec, checked)
        _open_partial(target.partial, conversion_json(spec, source, checked, n4, job))
        _write_volumes(source, target.partial, checked, n4, workers)
        write_records(target.partial, spec, checked)
        os.replace(target.partial, target.raw)
    put_beside_preprocessed(target.raw, target.preprocessed)
    return checked


def _job_in(folder: Path) -> str | None:
    record = folder / CONVERSION_FILE
    return str(read_json(record).get("job")) if record.exists() else None


def _check_same(raw: Path, job: str) -> None:
    if _job_in(raw) != job:
        raise ValueError(
            f"{raw} exists already and was made from other files or settings; delete it "
            "(and its preprocessed folder) or choose another dataset id (-d)"
        )


def _open_partial(folder: Path, conversion: dict[str, Any]) -> None:
    """Go on with an unfinished conversion of the same job; throw away that of another."""
    if folder.exists() and _job_in(folder) != conversion["job"]:
        shutil.rmtree(folder)
    write_json(folder / CONVERSION_FILE, conversion)


def _write_volumes(
    source: Path, folder: Path, checked: Sequence[Checked], n4: bool, workers: int
) -> None:
    transfers = [
        (source / path, folder / name, n4 and name.startswith("images"))
        for each in checked
        for path, name in target_files(each.case)
        if not (folder / name).exists()
    ]
    for parent in {goal.parent for _, goal, _ in transfers}:
        parent.mkdir(exist_ok=True)
    for_each(_transfer, transfers, workers, "write")


def _transfer(item: tuple[Path, Path, bool]) -> None:
    be_quiet()
    transfer(*item)
