"""Plans files of a preprocessed dataset: found, and written without touching another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, write_json


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
