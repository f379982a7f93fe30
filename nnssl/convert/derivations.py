"""Named functions that complete a spec from a file of the source folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json

Derivation = Callable[[Path, str], dict[str, Any]]


def decathlon_dataset_json(source: Path, pattern: str) -> dict[str, Any]:
    """Name, channels and labels of a Medical Decathlon task, from its ``dataset.json``.

    Args:
        source: ``TaskNN_Name``.
        pattern: Pattern of the images; a file holds all channels.

    Raises:
        ValueError: The file is missing or incomplete, or lists files that are not there.
    """
    path = source / "dataset.json"
    if not path.exists():
        raise ValueError(f"{path} is missing; SOURCE must be the folder TaskNN_Name of one task")
    content = read_json(path)
    try:
        channels = [content["modality"][key] for key in sorted(content["modality"], key=int)]
        labels = {name: int(value) for value, name in content["labels"].items()}
        listed = [file for entry in content["training"] for file in entry.values()]
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} must have modality, labels and training ({error!r})") from error
    if missing := [file for file in listed if not (source / file).exists()]:
        raise ValueError(f"{path} lists {len(missing)} files that are missing: {missing[:5]}")
    labels = {"background" if value == 0 else name: value for name, value in labels.items()}
    return {
        "name": _task_name(source, content),
        "description": str(content.get("description", "Medical Segmentation Decathlon")),
        "modality": "/".join(channels),
        "channels": dict.fromkeys(channels, pattern),
        "labels": dict(sorted(labels.items(), key=lambda entry: entry[1])),
        "fourth_axis": "channels" if len(channels) > 1 else None,
    }


def _task_name(source: Path, content: dict[str, Any]) -> str:
    """``Hippocampus`` of ``Task04_Hippocampus``; else the name in the file."""
    name = source.resolve().name.split("_", 1)
    return name[1] if name[0].startswith("Task") and len(name) == 2 else str(content.get("name"))


DERIVATIONS: dict[str, Derivation] = {"decathlon_dataset_json": decathlon_dataset_json}
