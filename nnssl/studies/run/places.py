"""What nnU-Net's files of a run say: where they are, whether it is done, how far it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from nnssl.common.files import read_json
from nnssl.nnunet import paths
from nnssl.nnunet.paths import FINAL, LATEST, SUMMARY, find_training_logs

EPOCH = re.compile(r": Epoch (\d+)\s*$", re.M)


def dataset_name(dataset: int | str, results: Path) -> str:
    """nnU-Net's name of a dataset, from the results or nnU-Net's own folders.

    Raises:
        ValueError: there is no such dataset.
    """
    if isinstance(dataset, str) and not dataset.isdigit():
        return dataset
    if found := paths.find_dataset_names(dataset, results):
        return found[0]
    roots = (paths.find_root(paths.PREPROCESSED), paths.find_root(paths.RAW))
    return paths.dataset_name(dataset, *filter(None, roots))


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
    logs = find_training_logs(fold_folder)
    found = EPOCH.findall(logs[-1].read_text(errors="replace")) if logs else []
    return int(found[-1]) if found else None
