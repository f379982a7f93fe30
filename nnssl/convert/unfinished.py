"""Folders that are filled by a job: complete, or set aside until they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, write_json
from nnssl.convert.records import CONVERSION_FILE


def job_in(folder: Path) -> str | None:
    """The job that a folder was filled by, if it says so."""
    record = folder / CONVERSION_FILE
    return str(read_json(record).get("job")) if record.exists() else None


def check_same(folder: Path, job: str, advice: str) -> None:
    """Refuse a complete folder of another job.

    Raises:
        ValueError: It was filled by another job; ``advice`` says what to do.
    """
    if job_in(folder) != job:
        raise ValueError(
            f"{folder} exists already and was made from other files or settings; {advice}"
        )


def open_partial(folder: Path, record: dict[str, Any]) -> None:
    """Go on with an unfinished folder of the same job; throw away that of another."""
    if folder.exists() and job_in(folder) != record["job"]:
        shutil.rmtree(folder)
    write_json(folder / CONVERSION_FILE, record)
