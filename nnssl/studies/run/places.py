"""What nnU-Net's files of a run say: where they are, whether it is done, how far it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from nnssl.common.files import read_json

FINAL = "checkpoint_final.pth"
LATEST = "checkpoint_latest.pth"
SUMMARY = Path("validation") / "summary.json"
EPOCH = re.compile(r": Epoch (\d+)\s*$", re.M)


def dataset_name(dataset: int | str, results: Path) -> str:
    """nnU-Net's name of a dataset, from the results or nnU-Net's own folders.

    Raises:
        ValueError: there is no such dataset.
    """
    if isinstance(dataset, str) and not dataset.isdigit():
        return dataset
    pattern = f"Dataset{int(dataset):03d}_*"
    variables = ("nnUNet_preprocessed", "nnUNet_raw")
    folders = [results, *(Path(os.environ[v]) for v in variables if os.environ.get(v))]
    for folder in folders:
        found = sorted(path.name for path in folder.glob(pattern) if path.is_dir())
        if found:
            return found[0]
    raise ValueError(
        f"dataset {dataset}: no folder {pattern} in nnUNet_preprocessed or nnUNet_raw "
        f"({', '.join(map(str, folders[1:])) or 'neither variable is set'})"
    )


def is_done(fold_folder: Path, kind: Literal["pretrain", "finetune"]) -> bool:
    """Whether the run has ended, fine-tuning with its validation; read from nnU-Net's files."""
    final = (fold_folder / FINAL).is_file()
    return final and (kind == "pretrain" or (fold_folder / SUMMARY).is_file())


def can_continue(fold_folder: Path) -> bool:
    """Whether `--c` has something to continue: a stopped training, or a stopped validation."""
    return (fold_folder / LATEST).is_file() or (fold_folder / FINAL).is_file()


def dice(fold_folder: Path) -> float | None:
    """Mean foreground Dice of nnU-Net's own validation, if there is one."""
    file = fold_folder / SUMMARY
    return float(read_json(file)["foreground_mean"]["Dice"]) if file.is_file() else None


def epoch(fold_folder: Path) -> int | None:
    """The epoch that the newest training log is in, if it is in one."""
    logs = sorted(fold_folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    found = EPOCH.findall(logs[-1].read_text(errors="replace")) if logs else []
    return int(found[-1]) if found else None
