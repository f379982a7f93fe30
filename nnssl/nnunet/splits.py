"""Folds: drawn by patient, put where nnU-Net reads them, refused where they would leak."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split
from typing_extensions import TypedDict

from nnssl.common.files import put_back, read_json, write_json
from nnssl.nnunet.cases import CaseRecord, read_all_cases, read_cases
from nnssl.nnunet.images import list_cases
from nnssl.nnunet.paths import CASES_FILE, RAW, SPLITS_FILE, find_root

Split = list[dict[str, list[str]]]
SIDES = ("train", "val")
FOLDS = 5  # nnU-Net's number


class _Fold(TypedDict):
    train: list[str]
    val: list[str]


def read_splits(file: Path) -> Split:
    """The folds in ``splits_final.json``; ValueError where it holds something else."""
    found: Split = read_json(file, list[_Fold])
    return found


def draw_splits(patients: Mapping[str, str], folds: int = FOLDS, seed: int = 1234) -> Split:
    """Draw folds by patient, as nnU-Net's own ACDC converter does with seed 1234.

    Args:
        patients: Case identifier -> patient, of two patients at least.
        folds: Number of folds; never more than there are patients.
        seed: Seed of the draw.

    Returns:
        For each fold ``{"train": [...], "val": [...]}``; sorted identifiers.
    """
    names = sorted(set(patients.values()))
    if len(names) < 2:
        raise ValueError(
            f"folds need at least two patients; found {names}, so none can be held out. Train fold "
            "all, which validates on what it trains on"
        )
    np.random.RandomState(seed).shuffle(names)
    cases, count = sorted(patients), min(folds, len(names))
    return [
        {
            "train": [case for case in cases if patients[case] not in held_out],
            "val": [case for case in cases if patients[case] in held_out],
        }
        for held_out in (set(names[fold::count]) for fold in range(count))
    ]


def draw_stock_splits(cases: Iterable[str]) -> Split:
    """The folds that nnU-Net itself draws, case by case; of fewer than five cases, where it fails,
    as many folds as cases.
    """
    names = sorted(cases)
    if len(names) < FOLDS:
        return draw_splits({case: case for case in names})
    drawn = generate_crossval_split(names, seed=12345, n_splits=FOLDS)
    return [{side: [str(case) for case in fold[side]] for side in SIDES} for fold in drawn]


def foresee_splits(dataset: Path, records: Mapping[str, CaseRecord]) -> Split:
    """The folds that training on a dataset uses, or will draw; nothing is written.

    Args:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        records: of its training cases.
    """
    raw = find_root(RAW)
    copies = [raw / dataset.name / SPLITS_FILE] if raw else []
    for file in (dataset / SPLITS_FILE, *copies):
        if file.exists():
            return read_splits(file)
    if (dataset / CASES_FILE).exists():
        return draw_splits({case: record.patient for case, record in records.items()})
    return draw_stock_splits(records)


def read_fold(dataset: Path, fold: int | str) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold of `nnUNet_preprocessed/DatasetXXX_NAME`, sorted."""
    file = dataset / SPLITS_FILE
    if not file.is_file():
        raise ValueError(f"{file} does not exist; train the fold once, which writes it")
    split = _find_fold(file, fold)[int(fold)]
    return sorted(split["train"]), sorted(split["val"])


def check_fold(preprocessed: Path, fold: int | str, needed: Collection[str] = ("train",)) -> None:
    """Put the split in place if it is missing, and refuse one that cannot be honest.

    The converter's copy beside the raw data is put back; a dataset whose patients are known gets a
    patient-wise split, one of fewer than five cases as many folds as cases (nnU-Net would fail);
    else nnU-Net draws its own.

    Args:
        preprocessed: `nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>`.
        fold: number of the fold, or `all`.
        needed: sides of the fold that must hold a case; nnU-Net's trainers fail without `val`.

    Raises:
        ValueError: a side without case, a split that parts a patient, or a fold beyond the file
            (nnU-Net would draw a random one, case by case).
    """
    if fold == "all":
        return
    dataset, raw = preprocessed.parent, find_root(RAW)
    file = dataset / SPLITS_FILE
    if raw:
        restore_records(raw / dataset.name, dataset)
    if not file.exists() and (training := read_all_cases(dataset, "Tr")):
        write_json(file, draw_splits({case: each.patient for case, each in training.items()}))
    if not file.exists() and len(few := list_cases(preprocessed)) < FOLDS:
        write_json(file, draw_stock_splits(few))
    if not file.exists():
        return
    splits = _find_fold(file, fold)
    if empty := [side for side in needed if not splits[int(fold)][side]]:
        raise ValueError(
            f"fold {fold} of {file} has no case in {' and '.join(empty)}; choose another fold, or "
            "train fold all, which validates on what it trains on"
        )
    cases = {case for split in splits for side in SIDES for case in split[side]}
    check_split(splits, read_cases(dataset, cases))


def _find_fold(file: Path, fold: int | str) -> Split:
    """All folds of the file, of which this is one."""
    splits = read_splits(file)
    if not 0 <= int(fold) < len(splits):
        raise ValueError(
            f"fold {fold}: {file} has {len(splits)} folds, allowed are 0 to {len(splits) - 1} and "
            "all. (nnU-Net would silently draw a random split here, case by case.)"
        )
    return splits


def check_split(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Mapping[str, CaseRecord]
) -> None:
    """Refuse folds (content of ``splits_final.json``) with cases of one patient on both sides.

    Raises:
        ValueError: Names the fold and the patients, or the cases that have no record.
    """
    for fold, split in enumerate(splits):
        if unknown := sorted(c for side in SIDES for c in split[side] if c not in cases):
            raise ValueError(
                f"fold {fold} has cases that the dataset does not have: {unknown[:10]}"
            )
        train, val = ({cases[case].key for case in split[side]} for side in SIDES)
        if parted := sorted(patient for _, patient in train & val):
            raise ValueError(
                f"fold {fold} has patients in both training and validation: {parted[:10]}; write "
                f"a {SPLITS_FILE} that keeps the cases of a patient together"
            )


def restore_records(raw: Path, preprocessed: Path) -> None:
    """Put the converter's copies of case records and folds where they are read, if none are there.

    Both are folders ``DatasetXXX_NAME``.
    """
    put_back(raw / CASES_FILE.name, preprocessed / CASES_FILE)
    put_back(raw / SPLITS_FILE, preprocessed / SPLITS_FILE)
