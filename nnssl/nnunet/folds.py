"""The fold's cases: nnU-Net's `splits_final.json`, refused where it would leak or surprise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnssl.common.files import read_json, write_json
from nnssl.nnunet.cases import CaseRecord, read_cases, restore_cases
from nnssl.nnunet.paths import CASES_FILE, RAW, SPLITS_FILE, find_root
from nnssl.nnunet.splits import check_split, patient_splits, restore_split


def check(preprocessed_folder: Path, fold: int | str) -> None:
    """Put the split in place if it is missing, and refuse one that cannot be honest.

    The converter's copy beside the raw data is put back; a dataset whose patients are known gets a
    patient-wise split; else nnU-Net draws its own.

    Args:
        preprocessed_folder: `nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>`.
        fold: number of the fold, or `all`.

    Raises:
        ValueError: a split that parts a patient, or a fold beyond the file (nnU-Net would draw a
            random one, case by case).
    """
    if fold == "all":
        return
    dataset = preprocessed_folder.parent
    file = dataset / SPLITS_FILE
    raw = find_root(RAW)
    if raw:
        restore_cases(raw / dataset.name, dataset)
    if not file.exists() and not (raw and restore_split(raw / dataset.name, dataset)):
        _draw(dataset)
    if not file.exists():
        return
    splits = read_json(file)
    if not 0 <= int(fold) < len(splits):
        raise ValueError(
            f"fold {fold}: {file} has {len(splits)} folds, allowed are 0 to {len(splits) - 1} and "
            "all. (nnU-Net would silently draw a random split here, case by case.)"
        )
    cases = {case for split in splits for side in ("train", "val") for case in split[side]}
    check_split(splits, _distinct(read_cases(dataset, cases)))


def _distinct(records: dict[str, CaseRecord]) -> dict[str, CaseRecord]:
    """In a pool, equal patient keys of two datasets of origin are two patients."""
    if len({record.dataset for record in records.values()}) < 2:
        return records
    return {
        case: replace(record, patient=f"{record.patient} of {record.dataset}")
        for case, record in records.items()
    }


def _draw(dataset: Path) -> None:
    if not (dataset / CASES_FILE).exists():
        return
    training = read_json(dataset / CASES_FILE)["cases"]
    labelled = {case: entry["patient"] for case, entry in training.items() if _is_training(entry)}
    write_json(dataset / SPLITS_FILE, patient_splits(labelled))


def _is_training(entry: dict[str, str]) -> bool:
    return entry.get("part", "Tr") == "Tr"
