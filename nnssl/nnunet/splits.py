"""Folds that never part a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.common.files import put_back
from nnssl.nnunet.paths import SPLITS_FILE

if TYPE_CHECKING:
    from nnssl.nnunet.cases import CaseRecord

Split = list[dict[str, list[str]]]


def patient_splits(patients: Mapping[str, str], folds: int = 5, seed: int = 1234) -> Split:
    """Draw folds by patient, as nnU-Net's own ACDC converter does with seed 1234.

    Args:
        patients: Case identifier -> patient.
        folds: Number of folds; never more than there are patients.
        seed: Seed of the draw.

    Returns:
        For each fold ``{"train": [...], "val": [...]}``; sorted identifiers.

    Raises:
        ValueError: Fewer than two patients.
    """
    names = sorted(set(patients.values()))
    if len(names) < 2:
        raise ValueError(f"folds need at least two patients; found {names}")
    order = list(names)
    np.random.RandomState(seed).shuffle(order)
    count = min(folds, len(names))
    return [_fold(patients, set(order[fold::count])) for fold in range(count)]


def _fold(patients: Mapping[str, str], held_out: set[str]) -> dict[str, list[str]]:
    cases = sorted(patients)
    return {
        "train": [case for case in cases if patients[case] not in held_out],
        "val": [case for case in cases if patients[case] in held_out],
    }


def check_split(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Mapping[str, CaseRecord]
) -> None:
    """Refuse folds that have cases of one patient on both sides.

    Args:
        splits: Content of ``splits_final.json``.
        cases: Case identifier -> record, see :func:`nnssl.nnunet.cases.read_cases`.

    Raises:
        ValueError: Names the fold and the patients, or the cases that are not known.
    """
    for fold, split in enumerate(splits):
        unknown = sorted(
            case for side in ("train", "val") for case in split[side] if case not in cases
        )
        if unknown:
            raise ValueError(
                f"fold {fold} has cases that the dataset does not have: {unknown[:10]}"
            )
        sides = [{cases[case].patient for case in split[side]} for side in ("train", "val")]
        if parted := sorted(sides[0] & sides[1]):
            raise ValueError(
                f"fold {fold} has patients in both training and validation: {parted[:10]}; write "
                f"a {SPLITS_FILE} that keeps the cases of a patient together"
            )


def restore_split(raw_folder: Path, preprocessed_folder: Path) -> bool:
    """Put the converter's copy of the folds where nnU-Net reads it, if nothing is there.

    Args:
        raw_folder: ``nnUNet_raw/DatasetXXX_NAME``.
        preprocessed_folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.

    Returns:
        Whether a file was put in place.
    """
    return put_back(raw_folder / SPLITS_FILE, preprocessed_folder / SPLITS_FILE)
