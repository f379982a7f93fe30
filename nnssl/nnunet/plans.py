"""Plans files of a preprocessed dataset: found, and written without touching another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, write_json


def plans_file(dataset_id: int, name: str) -> Path:
    """The file of a dataset's plans.

    Args:
        dataset_id: Number of the dataset.
        name: Name of the plans.

    Raises:
        ValueError: ``nnUNet_preprocessed`` is not set, or the dataset or its plans are not there.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    if not root:
        raise ValueError("the environment variable nnUNet_preprocessed is not set")
    folders = sorted(Path(root).glob(f"Dataset{dataset_id:03d}_*"))
    if len(folders) != 1:
        found = [folder.name for folder in folders] or "none"
        raise ValueError(f"{root} must have one folder of dataset {dataset_id}; found {found}")
    path = folders[0] / f"{name}.json"
    if not path.exists():
        command = f"nnUNetv2_plan_experiment -d {dataset_id}"
        raise ValueError(f"{path} does not exist; run first: {command} (other plans: -p)")
    return path


def write_new_plans(folder: Path, plans: Mapping[str, Any]) -> Path:
    """Write plans under their name; the same content may be there already.

    Raises:
        ValueError: Other plans have this name or this folder of preprocessed cases.
    """
    path = folder / f"{plans['plans_name']}.json"
    if path.exists() and read_json(path) != plans:
        raise ValueError(
            f"{path} exists already and says something else; give another --name, or delete it "
            "together with the cases that were preprocessed by it"
        )
    own = _data_folders(plans)
    for other in sorted(folder.glob("*.json")):
        if other != path and (shared := own & _data_folders(read_json(other))):
            raise ValueError(
                f"{other} keeps its cases in {sorted(shared)} too; give another --name"
            )
    write_json(path, plans)
    return path


def _data_folders(plans: Any) -> set[str]:
    """Folders of preprocessed cases that a plans file names; none for other JSON files."""
    configurations = plans.get("configurations", {}) if isinstance(plans, Mapping) else {}
    return {
        entry["data_identifier"] for entry in configurations.values() if "data_identifier" in entry
    }
